# DMT without its weights (the ablation "gamma 0"): two members label for each other, and every
# pseudo-labeled pixel counts as much as a labeled one.
_base_ = './dmt_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(pseudo_loss=dict(gamma1=0.0, gamma2=0.0))
