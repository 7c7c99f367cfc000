# Cross Teacher Training on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many
# as the baseline has, and 8 unlabeled ones in each step. Both students start from the same backbone
# and differ in their heads.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_msrc21-96x96.py',
    '../_base_/methods/cross_teacher.py',
]

source_ratio = [1, 1]
batch_size = 16
# 1800 steps are few: the teachers follow fast, so that averaged weights and averaged batch-norm
# statistics fit each other, and are trusted only as they get better. Small banks fill in them.
contrast = dict(
    _base_.method.contrast,
    anchors_per_class=32,
    bank=dict(size=64, threshold=0.8),
    projection=dict(channels=64),
    # Some of the 21 classes are hardly ever predicted right and never fill their banks.
    start=0.5,
)
method = dict(
    _base_.method, threshold=0.9, rampup_iters=900, ema=dict(momentum=0.97), contrast=contrast
)
model = dict(_delete_=True, segmentor=_base_.model, **method)
