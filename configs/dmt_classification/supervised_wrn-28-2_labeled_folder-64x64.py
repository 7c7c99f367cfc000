# Labeled images only, your own: see ../_base_/classification/folder.py for what to set.
_base_ = [
    '../_base_/classification_runtime.py',
    '../_base_/classification/wrn-28-2.py',
    '../_base_/classification/folder.py',
    '../_base_/classification/schedule_sgd.py',
]

max_iters = 20000
overridable = dict(num_classes=_base_.num_classes, max_iters=max_iters)
model = dict(data_preprocessor=dict(to_rgb=True))
train_dataloader = dict(
    sampler=dict(source_ratio=[1]), dataset=dict(datasets=[_base_.labeled_dataset])
)
optim_wrapper = dict(optimizer=dict(lr=0.03))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters)
