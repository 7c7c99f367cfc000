# DMT on the benchmark for CPUs, with as many steps in all as the labeled-only baseline: 900 on
# labels, 900 with the more confident half of the images, 1800 with all of them.
_base_ = './supervised_wrn-16-1_4000_cifar10-16x16.py'

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 3]
mutual = dict(
    task='classification',
    members=[dict(name='a', seed=1)],
    ratios=[0.5, 1.0],
    supervised=dict(max_iters=900),
    round=dict(max_iters=[900, 1800], lr=0.1, from_scratch=True),
    # After so few steps a network has little confidence: larger gammas would leave little.
    pseudo_loss=dict(gamma1=1.0, gamma2=1.0),
)
