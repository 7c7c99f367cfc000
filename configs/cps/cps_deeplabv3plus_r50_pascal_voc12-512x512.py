# Cross Pseudo Supervision with DeepLabV3+ R50 on PASCAL VOC 2012 with SBD.
_base_ = [
    '../supervised/deeplabv3plus_r50_pascal_voc12-512x512.py',
    '../_base_/methods/cps.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
