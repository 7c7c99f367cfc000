# Optimizer and crop as in UniMatch.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_40k_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.001, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
