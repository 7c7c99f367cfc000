_base_ = './dpt_dinov2-small.py'

model = dict(
    backbone=dict(model_name='vit_large_patch14_dinov2.lvd142m', out_indices=(4, 11, 17, 23)),
    decode_head=dict(in_channels=1024, channels=256, project_channels=(256, 512, 1024, 1024)),
)
