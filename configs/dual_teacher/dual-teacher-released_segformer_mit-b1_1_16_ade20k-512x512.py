# Dual Teacher as its released code runs it, not as in the paper: for reproduction, see
# docs/dual_teacher.md for each difference. Do not compare its scores with others.
_base_ = './dual-teacher_segformer_mit-b1_1_16_ade20k-512x512.py'

model = dict(
    type='mmdmt.ReleasedDualTeacher',
    strong=None,  # a color jitter of its own
    sub_model=None,
    ema=dict(momentum=0.99, mode='train', buffers='keep'),
)
# The learning rate always decays until step 50000.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=50000, by_epoch=False),
]
# Labels are resized with the images and scored there, sides are multiples of 32, and the first of
# two devices scores its share of the images alone.
released_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='mmdmt.ScoreAtImageSize'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(
    dataset=dict(pipeline=released_pipeline, indices=list(range(0, 2000, 2))),
)
test_dataloader = val_dataloader
