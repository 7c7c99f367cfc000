# Mean Teacher with SegFormer B1 on ADE20K.
_base_ = [
    '../supervised/segformer_mit-b1_ade20k-512x512.py',
    '../_base_/methods/mean_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
