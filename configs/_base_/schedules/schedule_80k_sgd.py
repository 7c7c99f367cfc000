_base_ = './schedule_40k_sgd.py'

max_iters = 80000
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=8000)
