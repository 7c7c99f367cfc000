# U2PL with DeepLabV3+ R101 on Pascal VOC; published with crops of 513 and output stride 8.
_base_ = [
    '../supervised/deeplabv3plus_r101_pascal_voc12-321x321.py',
    '../_base_/methods/u2pl.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
