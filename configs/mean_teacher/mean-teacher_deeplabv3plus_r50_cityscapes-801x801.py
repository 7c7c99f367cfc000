# Mean Teacher with DeepLabV3+ R50 on Cityscapes.
_base_ = [
    '../supervised/deeplabv3plus_r50_cityscapes-801x801.py',
    '../_base_/methods/mean_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
