# UniMatch with DeepLabV3+ on Xception-65 on COCO 2017.
_base_ = [
    '../supervised/deeplabv3plus_xception65_coco81-513x513.py',
    '../_base_/methods/unimatch.py',
]

padding = 'black'
source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
