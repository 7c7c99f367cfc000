# DMT's ablation "CBST": one member labels for itself, and every pixel counts as much as a labeled
# one. Thresholds per class decide which pixels count, not which class they get, as they do in the
# publication of CBST (`mutual.labeling.rule=threshold_ratio`).
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = dict(_base_.single, pseudo_loss=dict(gamma1=0.0, gamma2=0.0))
