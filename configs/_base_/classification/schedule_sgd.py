# SGD with a cosine to 0, and the average of the weights that is validated, stored and labels.
max_iters = 4240
schedule_settings = dict(
    max_iters=dict(default=max_iters, sets=['train_cfg.max_iters', 'param_scheduler.**.end'])
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# As published, the average is nearly the last iterate: momentum=0.001, buffers='copy',
# warmup=False.
custom_hooks = [
    dict(type='EMAHook', ema_type='mmdmt.EMAModel', momentum=0.999, buffers='ema', warmup=True),
]
