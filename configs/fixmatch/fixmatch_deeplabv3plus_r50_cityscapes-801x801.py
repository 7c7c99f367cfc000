# FixMatch with DeepLabV3+ R50 on Cityscapes, where all labels count, with the settings of UniMatch.
_base_ = [
    '../supervised/ohem_deeplabv3plus_r50_cityscapes-801x801.py',
    '../_base_/methods/fixmatch.py',
]

padding = 'black'
source_ratio = [1, 1]
method = dict(_base_.method, threshold=0.0)
model = dict(_delete_=True, segmentor=_base_.model, **method)
