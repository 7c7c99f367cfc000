_base_ = './augseg_deeplabv3plus_r50_cityscapes-800x800.py'

model = dict(
    segmentor=dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
)
