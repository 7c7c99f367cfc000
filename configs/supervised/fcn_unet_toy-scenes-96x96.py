# The demo's baseline: a small U-Net, trained from scratch on labeled scenes.
_base_ = ['../_base_/datasets/toy_scenes.py', '../_base_/default_runtime.py']

channels_last = True  # faster convolutions on a CPU
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='mmdmt.PaddingPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        padding='mean',
        pad_val=0,
        seg_pad_val=255,
        size=_base_.crop_size,
        test_cfg=dict(size_divisor=32),
    ),
    # The first convolution has stride 2, so the prediction has half the size of the image; the
    # sides of the image have to be divisible by 32.
    backbone=dict(
        type='UNet',
        in_channels=3,
        base_channels=16,
        num_stages=5,
        strides=(2, 1, 1, 1, 1),
        enc_num_convs=(2, 2, 2, 2, 2),
        dec_num_convs=(1, 1, 1, 1),
        downsamples=(True, True, True, True),
        enc_dilations=(1, 1, 1, 1, 1),
        dec_dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=16,
        in_index=4,
        channels=16,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=_base_.num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
max_iters = 400
schedule_settings = dict(
    max_iters=dict(default=max_iters, sets=['train_cfg.max_iters', 'param_scheduler.**.end'])
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-3, weight_decay=0.01),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=40, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='mmdmt.NetworksValLoop')
test_cfg = dict(type='TestLoop')
# The dataset is generated, so nothing in it can be broken.
default_hooks = dict(checkpoint=dict(interval=max_iters), dataset_check=dict(mode='off'))
