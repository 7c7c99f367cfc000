# The network of UniMatch V2: DINOv2 ViT-S/14, of which four blocks feed a DPT head. Images are
# resized to multiples of 14 inside the backbone. timm downloads the weights (Apache-2.0); offline
# set model.backbone.pretrained_cfg_overlay=dict(file='...').
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='mmdmt.PaddingPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        padding='mean',
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmdmt.TIMMVisionTransformer',
        model_name='vit_small_patch14_dinov2.lvd142m',
        out_indices=(2, 5, 8, 11),
        with_cp=False,
        pretrained=True,
    ),
    decode_head=dict(
        type='mmdmt.DPTHead',
        in_channels=384,
        channels=64,
        project_channels=(48, 96, 192, 384),
        patch_size=14,
        num_classes=21,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
