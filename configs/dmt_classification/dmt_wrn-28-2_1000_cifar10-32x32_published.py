# As the released code computes it: an average that is nearly the last iterate, and batch norms that
# see every batch of a round twice.
_base_ = './dmt_wrn-28-2_1000_cifar10-32x32.py'

default_hooks = dict(ema=dict(momentum=0.001, buffers='copy', warmup=False))
mutual = dict(pseudo_loss=dict(update_bn_twice=True))
