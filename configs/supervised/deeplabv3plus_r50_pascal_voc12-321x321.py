# Crop, batch, optimizer and length as in UniMatch; the schedule has the length for other labels.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_unimatch_voc_sgd.py',
    '../_base_/default_runtime.py',
]

batch_size = 16
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True),
)
