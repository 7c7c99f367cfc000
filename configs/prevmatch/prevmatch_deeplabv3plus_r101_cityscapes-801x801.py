# PrevMatch, on UniMatch, with DeepLabV3+ R101 on Cityscapes, where all labels count; published with
# OHEM.
_base_ = [
    '../supervised/deeplabv3plus_r101_cityscapes-801x801.py',
    '../_base_/methods/prevmatch.py',
]

padding = 'black'
source_ratio = [1, 1]
method = dict(_base_.method, threshold=0.0, previous=dict(_base_.method.previous, threshold=0.0))
model = dict(_delete_=True, segmentor=_base_.model, **method)
