# Dual Teacher with DeepLabV3+ R101 on Cityscapes.
_base_ = [
    '../supervised/deeplabv3plus_r101_cityscapes-801x801.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
