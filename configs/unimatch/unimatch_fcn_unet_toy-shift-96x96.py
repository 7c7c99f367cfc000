_base_ = [
    '../supervised/fcn_unet_toy-shift-96x96.py',
    '../_base_/methods/unimatch.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
