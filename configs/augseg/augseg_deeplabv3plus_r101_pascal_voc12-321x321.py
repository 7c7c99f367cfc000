# AugSeg with DeepLabV3+ R101 on Pascal VOC; published with crops of 513.
_base_ = [
    '../supervised/deeplabv3plus_r101_pascal_voc12-321x321.py',
    '../_base_/methods/augseg.py',
]

source_ratio = [1, 1]
method = dict(_base_.method, ema=dict(momentum=0.999), extra_weak=False)
model = dict(_delete_=True, segmentor=_base_.model, **method)
