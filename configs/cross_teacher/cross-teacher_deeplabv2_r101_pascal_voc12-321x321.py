# Cross Teacher Training with DeepLabV2 R101 on PASCAL VOC 2012 with SBD.
_base_ = [
    '../supervised/deeplabv2_r101_pascal_voc12-321x321.py',
    '../_base_/methods/cross_teacher.py',
]

source_ratio = [1, 1]
# DeepLabV2 classifies the 2048 channels of the backbone directly: they are compared in 256.
contrast = dict(_base_.method.contrast, projection=dict(channels=256))
method = dict(_base_.method, contrast=contrast)
model = dict(_delete_=True, segmentor=_base_.model, **method)
