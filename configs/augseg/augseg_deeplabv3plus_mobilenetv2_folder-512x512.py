# AugSeg on your own images: see ../_base_/datasets/folder.py for what to set.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_folder-512x512.py',
    '../_base_/methods/augseg.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
