# DMT without weights: members label for each other, and every pseudo-labeled pixel counts as much as
# a labeled one. Not among the published ablations, but in their setting.
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = dict(pseudo_loss=dict(gamma1=0.0, gamma2=0.0))
