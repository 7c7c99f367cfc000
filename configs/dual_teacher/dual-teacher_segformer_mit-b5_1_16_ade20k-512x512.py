_base_ = './dual-teacher_segformer_mit-b1_1_16_ade20k-512x512.py'

checkpoint = (
    'https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b5_20220624-658746d9.pth'
)
model = dict(
    segmentor=dict(
        backbone=dict(num_layers=[3, 6, 40, 3], init_cfg=dict(checkpoint=checkpoint)),
    ),
)
