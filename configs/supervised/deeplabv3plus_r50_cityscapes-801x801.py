# Optimizer, crop and sliding evaluation as in UniMatch, without its online hard example mining.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_80k_sgd.py',
    '../_base_/default_runtime.py',
]

evaluation_protocol = 'cityscapes_sliding'
crop_size = (801, 801)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True),
)
optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=1e-4))
