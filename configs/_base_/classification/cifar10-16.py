# cifar10.py at half the size, for CPUs.
_base_ = './cifar10.py'

labeled_list = 'splits/4000/seed_1/labeled.txt'
unlabeled_list = 'splits/4000/seed_1/unlabeled.txt'
batch_size = 64
image_size = (16, 16)
crop_size = (16, 16)

resize = dict(type='Resize', scale=image_size, interpolation='area')
train_pipeline = [
    resize,
    dict(type='RandomCrop', crop_size=crop_size, padding=2, pad_val=128),
    dict(type='RandomFlip', prob=0.5),
    dict(_base_.rand_augment, policies='paper', cutout=8),
    dict(type='PackInputs', algorithm_keys=('soft_label',)),
]
test_pipeline = [resize, dict(type='PackInputs')]
settings = dict(image_size=dict(default=image_size), crop_size=dict(default=crop_size))

labeled_dataset = dict(_base_.labeled_dataset, pipeline=train_pipeline)
unlabeled_dataset = dict(_base_.unlabeled_dataset, pipeline=train_pipeline)
train_dataloader = dict(num_workers=1, dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
