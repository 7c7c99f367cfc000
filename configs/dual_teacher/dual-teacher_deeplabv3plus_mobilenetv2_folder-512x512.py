# Dual Teacher on your own images: see ../_base_/datasets/folder.py for what to set.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_folder-512x512.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
# A pass over few labeled images is too short a shift; with hundreds set 'epoch', as published.
method = dict(_base_.method, shift_length=100)
model = dict(_delete_=True, segmentor=_base_.model, **method)
