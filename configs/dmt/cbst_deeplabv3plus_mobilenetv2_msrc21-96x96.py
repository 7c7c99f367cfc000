# Class-balanced self-training (CBST): one member labels for itself, thresholds per class decide
# which class a pixel gets and whether it counts, and all that count have the weight 1.
_base_ = './dst-cbc_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(pseudo_loss=dict(gamma=0.0), labeling=dict(rule='threshold_ratio'))
