_base_ = './schedule_40k_sgd.py'

max_iters = 20000
train_cfg = dict(val_interval=2000)
