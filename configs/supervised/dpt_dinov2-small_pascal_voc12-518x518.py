# Crop, batch, optimizer and length as in UniMatch V2.
_base_ = [
    '../_base_/models/dpt_dinov2-small.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_unimatch_v2_dino.py',
    '../_base_/default_runtime.py',
]

crop_size = (518, 518)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 32
max_iters = _base_.unimatch_v2_iters['pascal_voc12']['1323']
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 10)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
