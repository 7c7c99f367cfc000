_base_ = [
    '../supervised/segformer_mit-b5_gta5-cityscapes-512x512.py',
    '../_base_/methods/unimatch.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
