# DMT with DeepLabV3+ R101 on ADE20K, one label in eight images.
_base_ = './dmt_deeplabv3plus_r50_1_8_ade20k-512x512.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'),
    ),
)
