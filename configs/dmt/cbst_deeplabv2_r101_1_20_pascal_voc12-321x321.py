# Class-balanced self-training (CBST): one member labels for itself, thresholds per class decide which
# class a pixel gets and whether it counts, and all that count have the weight 1.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

mutual = dict(
    members=[dict(_base_.coco_member, name='coco', seed=1)],
    pseudo_loss=dict(gamma1=0.0, gamma2=0.0),
    labeling=dict(rule='threshold_ratio'),
)
