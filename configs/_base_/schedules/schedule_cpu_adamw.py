# A schedule for CPUs: AdamW, head three times as fast as the pretrained backbone.
max_iters = 1800
schedule_settings = dict(
    max_iters=dict(default=max_iters, sets=['train_cfg.max_iters', 'param_scheduler.**.end'])
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=3.0))),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=600)
val_cfg = dict(type='mmdmt.NetworksValLoop')
test_cfg = dict(type='TestLoop')
