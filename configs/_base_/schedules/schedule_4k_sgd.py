_base_ = './schedule_40k_sgd.py'

max_iters = 4000
train_cfg = dict(val_interval=400)
