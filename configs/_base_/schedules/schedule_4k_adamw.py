_base_ = './schedule_40k_adamw.py'

max_iters = 4000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=150, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=150, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=400)
