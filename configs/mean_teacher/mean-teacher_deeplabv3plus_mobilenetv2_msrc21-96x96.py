# Mean Teacher on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many as the
# baseline has, and 8 unlabeled ones in each step.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_msrc21-96x96.py',
    '../_base_/methods/mean_teacher.py',
]

source_ratio = [1, 1]
batch_size = 16
# 1800 steps are few: the teacher follows fast, so that averaged weights and averaged batch-norm
# statistics fit each other, and is trusted only as it gets better.
method = dict(_base_.method, threshold=0.9, rampup_iters=900, ema=dict(momentum=0.97))
model = dict(_delete_=True, segmentor=_base_.model, **method)
