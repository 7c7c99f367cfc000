# U2PL with DeepLabV3+ R101 on Cityscapes; published with crops of 769, OHEM and output stride 8.
_base_ = [
    '../supervised/deeplabv3plus_r101_cityscapes-801x801.py',
    '../_base_/methods/u2pl.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **dict(_base_.method, sup_only=0))
