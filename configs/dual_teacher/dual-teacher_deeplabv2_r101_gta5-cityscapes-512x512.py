_base_ = [
    '../supervised/deeplabv2_r101_gta5-cityscapes-512x512.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
