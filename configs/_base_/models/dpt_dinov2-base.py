_base_ = './dpt_dinov2-small.py'

model = dict(
    backbone=dict(model_name='vit_base_patch14_dinov2.lvd142m'),
    decode_head=dict(in_channels=768, channels=128, project_channels=(96, 192, 384, 768)),
)
