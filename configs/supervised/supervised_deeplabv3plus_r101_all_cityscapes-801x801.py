_base_ = './supervised_deeplabv3plus_r50_all_cityscapes-801x801.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'),
    ),
)
