# CutMix-Seg with DeepLabV2 on PASCAL VOC 2012 with SBD; only the student's unlabeled images change their colors.
_base_ = [
    '../supervised/adam_deeplabv2_r101_pascal_voc12-321x321.py',
    '../_base_/methods/cutmix_seg.py',
]

source_ratio = [1, 1]
method = dict(_base_.method, strong=dict(type='mmdmt.StrongAugment', preset='cutmix_seg'))
model = dict(_delete_=True, segmentor=_base_.model, **method)
