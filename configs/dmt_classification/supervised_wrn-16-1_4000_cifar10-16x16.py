# A benchmark that a CPU can bear: images of half the size, a network of 175 000 parameters.
_base_ = [
    '../_base_/classification_runtime.py',
    '../_base_/classification/wrn-28-2.py',
    '../_base_/classification/cifar10-16.py',
    '../_base_/classification/schedule_sgd.py',
]

max_iters = 3600
overridable = dict(num_classes=_base_.num_classes, max_iters=max_iters)
model = dict(backbone=dict(depth=16, widen_factor=1), head=dict(in_channels=64))
train_dataloader = dict(
    sampler=dict(source_ratio=[1]), dataset=dict(datasets=[_base_.labeled_dataset])
)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=900)
# Over so few steps an average of 1000 would hold the first ones too.
custom_hooks = [dict(type='EMAHook', ema_type='mmdmt.EMAModel', momentum=0.99)]
