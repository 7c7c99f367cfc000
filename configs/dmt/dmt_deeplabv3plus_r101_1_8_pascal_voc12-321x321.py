# DMT with DeepLabV3+ R101 on PASCAL VOC 2012, one label in eight images.
_base_ = './dmt_deeplabv3plus_r50_1_8_pascal_voc12-321x321.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'),
    ),
)
