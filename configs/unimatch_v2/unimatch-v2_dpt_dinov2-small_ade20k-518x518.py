# UniMatch V2 with DINOv2-S on ADE20K.
_base_ = [
    '../supervised/dpt_dinov2-small_ade20k-518x518.py',
    '../_base_/methods/unimatch_v2.py',
]

padding = 'black'
source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
