_base_ = './dual-teacher_segformer_mit-b1_1_16_ade20k-512x512.py'

checkpoint = (
    'https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b2_20220624-66e8bf70.pth'
)
model = dict(
    segmentor=dict(
        backbone=dict(num_layers=[3, 4, 6, 3], init_cfg=dict(checkpoint=checkpoint)),
    ),
)
