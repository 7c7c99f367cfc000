# Cross Teacher Training between two architectures on PASCAL VOC 2012, one label in eight images: a
# DeepLabV3+ R50 (l) and a SegFormer B1 (r) teach each other.
#
# Their features have different channels, so they are compared in a projection. Both share one AdamW;
# the longest key that a parameter's name contains decides its rate, so keys that begin with a
# student's name win over those for both. The rates are this project's choice.
_base_ = [
    '../supervised/supervised_deeplabv3plus_r50_1_8_pascal_voc12-321x321.py',
    '../_base_/methods/cross_teacher.py',
]

deeplab = _base_.model
deeplab.pop('data_preprocessor')
segformer = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='MixVisionTransformer',
        in_channels=3,
        embed_dims=64,
        num_stages=4,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/'
            'mit_b1_20220624-02e5a6a1.pth',
        ),
    ),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    contrast=dict(_base_.semi_train_cfg.contrast, num_labeled=1323, projection=dict(channels=256)),
)
model = dict(
    _delete_=True,
    type='mmdmt.CrossTeacher',
    segmentor=dict(l=deeplab, r=segformer),
    data_preprocessor=data_preprocessor,
    semi_train_cfg=semi_train_cfg,
    semi_test_cfg=dict(predict_on='teacher_average'),
)
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'pos_block': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
            'head': dict(lr_mult=10.0),
            'student_l.backbone': dict(lr_mult=2.0),
        }
    ),
)
val_cfg = dict(type='mmdmt.NetworksValLoop', networks=_base_.networks)
test_cfg = dict(type='mmdmt.NetworksTestLoop', networks=_base_.networks)
