# AugSeg on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many as the
# baseline has, and 8 unlabeled ones in each step.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_msrc21-96x96.py',
    '../_base_/methods/augseg.py',
]

source_ratio = [1, 1]
batch_size = 16
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
