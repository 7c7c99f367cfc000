_base_ = './prevmatch_deeplabv3plus_r50_cityscapes-801x801.py'

model = dict(
    segmentor=dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
)
