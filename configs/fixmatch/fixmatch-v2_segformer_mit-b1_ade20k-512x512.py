# FixMatch with an EMA teacher and SegFormer B1 on ADE20K.
_base_ = [
    '../supervised/segformer_mit-b1_ade20k-512x512.py',
    '../_base_/methods/fixmatch_v2.py',
]

padding = 'black'
source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
