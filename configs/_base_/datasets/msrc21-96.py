# MSRC-21 at half its size, which a CPU can train on: 160x107 images, 96x96 crops.
# Labels are scored at their original size.
_base_ = './msrc21.py'

crop_size = (96, 96)
overridable = dict(crop_size=crop_size)

load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
resize = dict(type='RandomResize', scale=(160, 107), ratio_range=(0.5, 2.0), keep_ratio=True)
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(type='mmdmt.PackSemiInputs')
sup_pipeline = [
    load,
    dict(type='LoadAnnotations'),
    resize,
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    flip,
    pack,
]
unsup_pipeline = [
    load,
    resize,
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    flip,
    pack,
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 107), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.pipeline = sup_pipeline
unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.pipeline = unsup_pipeline
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
