# Curriculum labeling: DMT without weights.
_base_ = './dmt_wrn-28-2_40_cifar10-32x32.py'

mutual = dict(pseudo_loss=dict(gamma1=0.0, gamma2=0.0))
