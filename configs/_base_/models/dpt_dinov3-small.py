# DINOv3 ViT-S/16 with the DPT head of UniMatch V2. The weights have a license of their own, the
# DINOv3 License, which is not Apache-2.0: read it before you use or pass on what you train.
_base_ = './dpt_dinov2-small.py'

model = dict(
    backbone=dict(model_name='vit_small_patch16_dinov3.lvd1689m'),
    decode_head=dict(patch_size=16),
)
