_base_ = './deeplabv3plus_r50_coco81-513x513.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
