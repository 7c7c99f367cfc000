# DMT on the generated scenes; tools/demo.py runs it on scenes of a clear day with 6 labels. The two
# members differ in their seeds only: in what they start from and in the order of the images.
_base_ = [
    '../supervised/fcn_unet_toy-scenes-96x96.py',
    '../_base_/methods/dmt.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [4, 4]
mutual = dict(
    members=[dict(name='a', seed=0), dict(name='b', seed=1)],
    ratios=[0.6, 1.0],
    supervised=dict(max_iters=400),
    round=dict(max_iters=300, lr=4e-3),
    # Networks trained from scratch have little confidence; larger gammas would leave little to learn from.
    pseudo_loss=dict(gamma1=1.0, gamma2=1.0),
    labeling=dict(batch_size=16, num_workers=0),
)
