# DMT's ablation "DST": one member labels for itself, with the weights of DMT.
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = _base_.single
