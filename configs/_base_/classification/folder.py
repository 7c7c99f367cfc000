# Your own images: one folder for each class.
#
# data_root/
#   train/<class>/**/*.jpg      labeled and unlabeled images
#   test/<class>/**/*.jpg
#   splits/labeled.txt          names below train (cat/001.jpg), one per line
#   splits/unlabeled.txt        the other names
#   splits/validation/val.txt   labeled images to validate with, in neither of the other lists
#
# tools/misc/split_classes.py --img-dir data_root/train draws lists where all images have labels.
#
# In a child config, set:
#   data_root = '/path/to/your/data'
#   num_classes = 5
#   image_size = (72, 72)       images are brought to this (width, height),
#   crop_size = (64, 64)        padded by 4 on each side, and cropped to this (height, width)
# Classes are the folders of train, in alphabetical order. Images without a known class lie in a
# folder of their own, all of which is used without a list:
#   train_dataloader = dict(dataset=dict(datasets=[_base_.labeled_dataset, dict(
#       _base_.unlabeled_dataset, ann_file='', dataset=dict(
#           type='mmpretrain.CustomDataset', data_prefix='/path/to/them', with_label=False))]))
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options; max_iters too,
# for labeled-only training.
_base_ = ['./augment.py', '../settings.py']

data_root = 'data/mine'
labeled_list = 'splits/labeled.txt'
unlabeled_list = 'splits/unlabeled.txt'
val_list = 'splits/validation/val.txt'
image_size = (64, 64)
crop_size = (64, 64)
batch_size = 64  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
num_classes = 10
metainfo = dict()  # classes: the folders
# The values above are what the places of `settings` are written with.
settings = {name: dict(default=globals()[name]) for name in _base_.settings if name in globals()}

train_images = dict(
    type='mmpretrain.CustomDataset', data_root=data_root, metainfo=metainfo, data_prefix='train'
)
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='Resize', scale=image_size, interpolation='area'),
    dict(type='RandomCrop', crop_size=crop_size, padding=4, pad_val=128),
    dict(type='RandomFlip', prob=0.5),
    dict(_base_.rand_augment, policies='paper', cutout=16),
    dict(type='PackInputs', algorithm_keys=('soft_label',)),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='Resize', scale=image_size, interpolation='area'),
    dict(type='CenterCrop', crop_size=crop_size),
    dict(type='PackInputs'),
]

labeled_dataset = dict(
    type='mmdmt.ListedDataset',
    dataset=train_images,
    data_root=data_root,
    ann_file=labeled_list,
    pipeline=train_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.ListedDataset',
    dataset=train_images,
    data_root=data_root,
    ann_file=unlabeled_list,
    labeled=False,
    pipeline=train_pipeline,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=batch_size, source_ratio=source_ratio),
    dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled_dataset, unlabeled_dataset]),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmdmt.ListedDataset',
        dataset=train_images,
        data_root=data_root,
        ann_file=val_list,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix='test',
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
