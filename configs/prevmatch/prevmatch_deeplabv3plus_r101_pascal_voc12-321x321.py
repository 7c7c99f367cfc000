# PrevMatch, on UniMatch, with DeepLabV3+ R101 on PASCAL VOC 2012 with SBD.
_base_ = [
    '../supervised/deeplabv3plus_r101_pascal_voc12-321x321.py',
    '../_base_/methods/prevmatch.py',
]

padding = 'black'
source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
