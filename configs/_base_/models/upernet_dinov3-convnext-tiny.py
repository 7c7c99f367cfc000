# DINOv3 ConvNeXt-T with UPerNet. See dpt_dinov3-small.py for the license of the weights.
_base_ = './upernet_mmpretrain-convnext-tiny.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='convnext_tiny.dinov3_lvd1689m',
        pretrained=True,
    ),
)
