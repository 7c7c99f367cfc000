# Dynamic mutual training on your own images: see ../_base_/datasets/folder.py for what to set.
# Two members, 1000 steps on the labels and five rounds of 1000 steps each: enough for some dozens
# of labeled images; more of them need a longer round 0.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_folder-512x512.py',
    '../_base_/methods/dmt.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 3]
mutual = dict(
    supervised=dict(max_iters=1000),
    round=dict(max_iters=1000),
    # Published are 5 and 5, at which members trained on few images learn little: docs/dmt.md.
    pseudo_loss=dict(gamma1=1.0, gamma2=1.0),
    ensemble=True,  # at the end also the mean of both members' predictions
)
