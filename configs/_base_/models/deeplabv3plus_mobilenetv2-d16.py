# A network that a CPU can train: MobileNetV2 at output stride 16 with a narrow DeepLabV3+ head.
# Low-level features: the 24 channels at stride 4.
_base_ = './deeplabv3plus_r50-d16.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        widen_factor=1.0,
        out_indices=(1, 2, 4, 6),
        strides=(1, 2, 2, 2, 1, 1, 1),
        dilations=(1, 1, 1, 1, 1, 2, 2),
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='mmcls://mobilenet_v2'),
    ),
    decode_head=dict(in_channels=320, channels=128, c1_in_channels=24, c1_channels=24),
)
