_base_ = './schedule_40k_adamw.py'

max_iters = 80000
train_cfg = dict(val_interval=8000)
