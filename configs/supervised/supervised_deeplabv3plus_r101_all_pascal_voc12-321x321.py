_base_ = './supervised_deeplabv3plus_r50_all_pascal_voc12-321x321.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'),
    ),
)
