# Crop, batch, optimizer and length as in Cross Pseudo Supervision.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_cps_sgd.py',
    '../_base_/default_runtime.py',
]

crop_size = (512, 512)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 16
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True),
)
