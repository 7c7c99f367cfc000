_base_ = './dual-teacher_segformer_mit-b1_1_16_ade20k-512x512.py'

labeled_list = 'splits/1_4/fold_0/labeled.txt'
unlabeled_list = 'splits/1_4/fold_0/unlabeled.txt'

max_iters = 126400  # 200 passes of 632 steps over 5052 labeled images
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=max_iters, by_epoch=False),
]
