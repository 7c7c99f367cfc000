# Cross Teacher Training on your own images: see ../_base_/datasets/folder.py for what to set.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_folder-512x512.py',
    '../_base_/methods/cross_teacher.py',
]

source_ratio = [1, 1]
# A class that is never predicted right never fills its bank: start with half of them.
method = dict(_base_.method, contrast=dict(_base_.method.contrast, start=0.5))
model = dict(_delete_=True, segmentor=_base_.model, **method)
