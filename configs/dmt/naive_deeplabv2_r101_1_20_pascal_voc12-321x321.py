# Naive self-training: one member labels for itself, one confidence for all classes decides what
# counts, with the weight 1. Of the ratios only their number counts: five rounds.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

mutual = dict(
    members=[dict(_base_.coco_member, name='coco', seed=1)],
    ratios=[1.0, 1.0, 1.0, 1.0, 1.0],
    pseudo_loss=dict(gamma1=0.0, gamma2=0.0),
    labeling=dict(threshold=0.9),
)
