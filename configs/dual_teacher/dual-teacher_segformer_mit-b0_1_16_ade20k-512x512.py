_base_ = './dual-teacher_segformer_mit-b1_1_16_ade20k-512x512.py'

checkpoint = (
    'https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth'
)
model = dict(
    segmentor=dict(
        backbone=dict(embed_dims=32, init_cfg=dict(checkpoint=checkpoint)),
        decode_head=dict(in_channels=[32, 64, 160, 256]),
    ),
)
