# AugSeg with DeepLabV3+ R101 on Pascal VOC as published: crops, 16 labeled and 16 unlabeled images in
# a step, 80 passes, a multi-grid.
_base_ = './augseg_deeplabv3plus_r101_pascal_voc12-321x321.py'

crop_size = (513, 513)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 32
max_iters = 80 * ((10582 - 1323) // 16)
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 8)
network = dict(data_preprocessor=dict(size=crop_size), backbone=dict(multi_grid=(1, 2, 4)))
model = dict(segmentor=network)
