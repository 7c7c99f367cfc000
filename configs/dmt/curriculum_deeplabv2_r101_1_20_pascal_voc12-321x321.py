# Curriculum labeling: one member labels for itself, a growing share of all pixels whatever their
# class, and starts each round from its first weights.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

mutual = dict(
    members=[dict(_base_.coco_member, name='coco', seed=1)],
    round=dict(lr=0.002, from_scratch=True),
    pseudo_loss=dict(gamma1=0.0, gamma2=0.0),
    labeling=dict(balance='global'),
)
