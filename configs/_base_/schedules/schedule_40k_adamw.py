# SegFormer's schedule: linear warm-up, linear decay, ten times the learning rate in the head, no
# weight decay on norms.
max_iters = 40000
schedule_settings = dict(
    max_iters=dict(default=max_iters, sets=['train_cfg.max_iters', 'param_scheduler.**.end'])
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            pos_block=dict(decay_mult=0.0),
            norm=dict(decay_mult=0.0),
            head=dict(lr_mult=10.0),
        )
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=4000)
val_cfg = dict(type='mmdmt.NetworksValLoop')
test_cfg = dict(type='TestLoop')
