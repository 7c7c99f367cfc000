# Dynamic mutual training on the small MSRC-21 benchmark of docs/results.md. Each member takes
# 3 x 600 = 1800 steps of 8 images, as many as the labeled-only baseline.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_msrc21-96x96.py',
    '../_base_/methods/dmt.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [3, 5]
mutual = dict(
    ratios=[0.5, 1.0],
    supervised=dict(max_iters=600),
    round=dict(max_iters=600),
    # Members trained on 34 images have little confidence: larger gammas would leave little.
    pseudo_loss=dict(gamma1=1.0, gamma2=1.0),
    ensemble=True,  # at the end also the mean of both members' predictions
)
