_base_ = './dual-teacher_deeplabv3plus_r50_1_8_cityscapes-801x801.py'

model = dict(
    segmentor=dict(
        backbone=dict(
            depth=101,
            init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'),
        ),
    ),
)
