# MSRC-21 at half its size, which a CPU can train on: 160x107 images, 96x96 crops.
# Labels are scored at their original size.
_base_ = './msrc21.py'

image_size = (160, 107)
crop_size = (96, 96)
small_settings = dict(crop_size=dict(default=crop_size))  # models are written with this one

test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='Resize', scale=_base_.image_size, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
