_base_ = './dual-teacher_segformer_mit-b1_1_16_ade20k-512x512.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
max_iters = 63200  # 200 passes of 316 steps over 2526 labeled images
train_cfg = dict(val_interval=max_iters // 10)
