# FixMatch with an EMA teacher and DINOv2-S on PASCAL VOC 2012 with SBD, the baseline of UniMatch V2.
_base_ = [
    '../supervised/dpt_dinov2-small_pascal_voc12-518x518.py',
    '../_base_/methods/fixmatch_v2.py',
]

padding = 'black'
source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
