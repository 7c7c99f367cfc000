# Dual Teacher on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many as the
# baseline has, and 8 unlabeled ones in each step.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_msrc21-96x96.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
batch_size = 16
# As for Mean Teacher in a run of 1800 steps: teachers that follow fast and are trusted only as they
# get better. A pass over 34 labeled images is 5 steps, in which a teacher that starts as the student
# would not average much: a shift of 50 steps is three times its memory of 1 / (1 - momentum), as a
# published one (79 to 632 steps) is one to six times.
method = dict(
    _base_.method, shift_length=50, threshold=0.9, rampup_iters=900, ema=dict(momentum=0.94)
)
model = dict(_delete_=True, segmentor=_base_.model, **method)
