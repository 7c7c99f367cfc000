# Cross Teacher Training with SegFormer B1 on Cityscapes.
_base_ = [
    '../supervised/segformer_mit-b1_cityscapes-1024x1024.py',
    '../_base_/methods/cross_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
