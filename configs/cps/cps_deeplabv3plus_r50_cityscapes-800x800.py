# Cross Pseudo Supervision with DeepLabV3+ R50 on Cityscapes.
_base_ = [
    '../supervised/deeplabv3plus_r50_cityscapes-800x800.py',
    '../_base_/methods/cps.py',
]

source_ratio = [1, 1]
method = dict(_base_.method, unsup_weight=6.0)
model = dict(_delete_=True, segmentor=_base_.model, **method)
