# As the demo, see dmt_fcn_unet_toy-scenes-96x96.py.
_base_ = [
    '../supervised/fcn_unet_toy-shift-96x96.py',
    '../_base_/methods/dmt.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [4, 4]
mutual = dict(
    ratios=[0.6, 1.0],
    supervised=dict(max_iters=400),
    round=dict(max_iters=300, lr=4e-3),
    pseudo_loss=dict(gamma1=1.0, gamma2=1.0),
    labeling=dict(batch_size=16, num_workers=0),
)
