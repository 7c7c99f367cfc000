# Optimizer and crop as in UniMatch, whose backbone is Xception-65.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/coco81.py',
    '../_base_/schedules/schedule_80k_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.004, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
