# U2PL on Cityscapes as published: crops, 16 labeled and 16 unlabeled images in a step, 200 passes,
# one rate for all layers, output stride 8 with rates of 12, 24 and 36, an auxiliary head, and hard
# example mining: 100,000 pixels of the 2 labeled images of a device at least.
_base_ = './u2pl_deeplabv3plus_r101_cityscapes-801x801.py'

crop_size = (769, 769)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 32
max_iters = 200 * ((2975 - 372) // 16)
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 8)
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=5e-4))
ohem = dict(type='mmdmt.OhemCrossEntropy', thresh=0.7, min_kept=50000)
model = dict(
    segmentor=dict(
        data_preprocessor=dict(size=crop_size),
        backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), multi_grid=(1, 2, 4)),
        decode_head=dict(dilations=(1, 12, 24, 36), loss_decode=dict(_delete_=True, **ohem)),
        auxiliary_head=dict(
            type='FCNHead',
            in_channels=1024,
            in_index=2,
            channels=256,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.1,
            num_classes=19,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
            align_corners=True,
            loss_decode=dict(loss_weight=0.4, **ohem),
        ),
    )
)
