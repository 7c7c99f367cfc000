# Resizing and learning rate, one for backbone and head, as in DMT.
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_20k_sgd.py',
    '../_base_/default_runtime.py',
]

resize_ratio = (0.5, 1.5)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
