_base_ = [
    '../supervised/fcn_unet_toy-shift-96x96.py',
    '../_base_/methods/mean_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
