_base_ = './dpt_dinov2-large.py'

# See dpt_dinov3-small.py for the license of the weights.
model = dict(
    backbone=dict(model_name='vit_large_patch16_dinov3.lvd1689m'),
    decode_head=dict(patch_size=16),
)
