# cifar10.py at half the size, for CPUs.
_base_ = './cifar10.py'

image_size = (16, 16)
batch_size = 64
overridable = dict(batch_size=batch_size, image_size=image_size)

resize = dict(type='Resize', scale=image_size, interpolation='area')
train_pipeline = [
    resize,
    dict(type='RandomCrop', crop_size=16, padding=2, pad_val=128),
    dict(type='RandomFlip', prob=0.5),
    dict(_base_.rand_augment, cutout=8),
    dict(type='PackInputs', algorithm_keys=('soft_label',)),
]
test_pipeline = [resize, dict(type='PackInputs')]

labeled_dataset = dict(_base_.labeled_dataset, pipeline=train_pipeline)
unlabeled_dataset = dict(_base_.unlabeled_dataset, pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    sampler=dict(batch_size=batch_size),
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
