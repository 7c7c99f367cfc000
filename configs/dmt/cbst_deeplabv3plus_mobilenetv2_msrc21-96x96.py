# DMT's ablation "CBST": one member labels for itself, and every pixel counts as much as a labeled
# one. Thresholds per class decide which pixels count, not which class they get, as they do in the
# publication of CBST (`mutual.labeling.rule=threshold_ratio`).
_base_ = './dst-cbc_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(pseudo_loss=dict(gamma=0.0))
