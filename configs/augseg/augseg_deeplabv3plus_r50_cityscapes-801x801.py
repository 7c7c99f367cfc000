# AugSeg with DeepLabV3+ R50 on Cityscapes, where all labels count; published with crops of 800 and
# OHEM.
_base_ = [
    '../supervised/deeplabv3plus_r50_cityscapes-801x801.py',
    '../_base_/methods/augseg.py',
]

source_ratio = [1, 1]
method = dict(_base_.method, threshold=0.0)
model = dict(_delete_=True, segmentor=_base_.model, **method)
