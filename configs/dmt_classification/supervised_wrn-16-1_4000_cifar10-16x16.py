# A benchmark for CPUs: images of half the size, a network of 175 000 parameters.
_base_ = [
    '../_base_/classification_runtime.py',
    '../_base_/classification/wrn-28-2.py',
    '../_base_/classification/cifar10-16.py',
    '../_base_/classification/schedule_sgd.py',
]

max_iters = 3600
length_settings = dict(max_iters=dict(default=max_iters))
# The head starts as the results in docs/results.md were measured.
start = dict(_delete_=True, type='Normal', layer='Linear', std=0.01)
model = dict(backbone=dict(depth=16, widen_factor=1), head=dict(in_channels=64, init_cfg=start))
optim_wrapper = dict(optimizer=dict(lr=0.1))
train_cfg = dict(val_interval=900)
# Over so few steps an average of 1000 would hold the first ones too.
default_hooks = dict(ema=dict(momentum=0.99))
