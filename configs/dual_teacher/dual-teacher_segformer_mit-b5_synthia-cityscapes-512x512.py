_base_ = [
    '../supervised/segformer_mit-b5_synthia-cityscapes-512x512.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
