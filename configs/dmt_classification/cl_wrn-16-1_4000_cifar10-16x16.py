# Curriculum labeling: DMT without weights.
_base_ = './dmt_wrn-16-1_4000_cifar10-16x16.py'

mutual = dict(pseudo_loss=dict(gamma1=0.0, gamma2=0.0))
