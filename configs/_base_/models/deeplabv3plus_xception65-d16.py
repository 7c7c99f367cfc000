# DeepLabV3+ on the aligned Xception-65 of timm, as UniMatch and PrevMatch use it on COCO. On several
# devices `sync_bn='torch'` joins its batch statistics.
_base_ = './deeplabv3plus_r50-d16.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='xception65.tf_in1k',
        features_only=True,
        pretrained=True,
        out_indices=(1, 4),
        output_stride=16,
    ),
    decode_head=dict(in_index=1, align_corners=True),
)
