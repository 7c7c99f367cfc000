# U2PL on Pascal VOC as published: crops, 16 labeled and 16 unlabeled images in a step, 80 passes,
# output stride 8 with rates of 12, 24 and 36.
_base_ = './u2pl_deeplabv3plus_r101_pascal_voc12-321x321.py'

crop_size = (513, 513)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 32
max_iters = 80 * ((10582 - 1323) // 16)
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 8)
stride_8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), multi_grid=(1, 2, 4))
model = dict(
    segmentor=dict(
        data_preprocessor=dict(size=crop_size),
        backbone=stride_8,
        decode_head=dict(dilations=(1, 12, 24, 36)),
    )
)
