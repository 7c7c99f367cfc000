# Naive self-training: one member labels for itself, one confidence for all classes decides what
# counts, with the weight 1. Of the ratios only their number counts: two rounds.
_base_ = './dst-cbc_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(
    ratios=[1.0, 1.0],
    pseudo_loss=dict(gamma=0.0),
    labeling=dict(threshold=0.9),
)
