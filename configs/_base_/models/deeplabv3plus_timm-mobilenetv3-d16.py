# Example: any timm backbone that gives feature maps, by its name. `out_indices` starts at stride
# 4, the low-level input of the head. timm fetches its own weights: `backbone.pretrained=False`
# trains without, `backbone.checkpoint_path` loads a file.
_base_ = './deeplabv3plus_r50-d16.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='mobilenetv3_large_100',
        features_only=True,
        pretrained=True,
        out_indices=(1, 2, 3, 4),
        output_stride=16,
    ),
    decode_head=dict(in_channels=960, channels=128, c1_in_channels=24, c1_channels=24),
)
