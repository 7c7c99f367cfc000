# DMT with DeepLabV3+ R50 on Cityscapes, one label in eight images. A member takes 20000 + 5 x 12000 =
# 80000 steps, as many as the labeled-only baseline.
# Gammas and ratios are those that DMT published for this dataset with DeepLabV2; full resolution,
# evaluation in windows.
_base_ = [
    '../supervised/deeplabv3plus_r50_cityscapes-801x801.py',
    '../_base_/methods/dmt_subsets.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 3]
mutual = dict(
    supervised=dict(max_iters=20000, lr=0.005),
    round=dict(max_iters=12000, lr=0.005),
    pseudo_loss=dict(gamma1=3.0, gamma2=3.0),
)
