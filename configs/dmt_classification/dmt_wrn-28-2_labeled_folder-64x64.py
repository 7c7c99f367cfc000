# DMT on your own images, with as many steps in all as the labeled-only baseline: see
# ../_base_/classification/folder.py for what to set.
_base_ = './supervised_wrn-28-2_labeled_folder-64x64.py'

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 3]
mutual = dict(
    task='classification',
    members=[dict(name='a', seed=1)],
    ratios=[0.33, 0.67, 1.0],
    supervised=dict(max_iters=4000),
    round=dict(max_iters=[4000, 4000, 8000], from_scratch=True),
    pseudo_loss=dict(gamma1=4.0, gamma2=4.0),
)
