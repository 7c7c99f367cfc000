# Set data_root, metainfo and num_classes, see ../_base_/datasets/folder.py.
_base_ = [
    '../_base_/models/upernet_mmpretrain-convnext-tiny.py',
    '../_base_/datasets/folder.py',
    '../_base_/schedules/schedule_40k_adamw.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
