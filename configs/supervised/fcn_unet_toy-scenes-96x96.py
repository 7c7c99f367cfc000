# The demo's baseline: a small U-Net, trained from scratch on labeled scenes.
_base_ = [
    '../_base_/models/fcn_unet-s2.py',
    '../_base_/datasets/toy_scenes.py',
    '../_base_/default_runtime.py',
]

channels_last = True  # faster convolutions on a CPU
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
max_iters = 400
schedule_settings = dict(
    max_iters=dict(default=max_iters, sets=['train_cfg.max_iters', 'param_scheduler.**.end'])
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-3, weight_decay=0.01),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=40, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='mmdmt.NetworksValLoop')
test_cfg = dict(type='TestLoop')
# The dataset is generated, so nothing in it can be broken.
default_hooks = dict(checkpoint=dict(interval=max_iters), dataset_check=dict(mode='off'))
