# CIFAR-10 with few labels.
#
# data_root/
#   cifar-10-batches-py/           the python version, as mmpretrain reads it
#   splits/validation/val.txt      200 images, 20 of each class
#   splits/<n>/seed_<s>/           labeled.txt and unlabeled.txt, n = 40, 250, 1000 or 4000
#
# python tools/misc/split_classes.py --dataset CIFAR10 --data-root data/cifar10 \
#     --out-dir data/cifar10/splits          draws the lists; with --download it fetches the data
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options.
_base_ = ['./augment.py', '../settings.py']

data_root = 'data/cifar10'
labeled_list = 'splits/1000/seed_1/labeled.txt'
unlabeled_list = 'splits/1000/seed_1/unlabeled.txt'
val_list = 'splits/validation/val.txt'
image_size = (32, 32)  # (width, height), which the images have
crop_size = (32, 32)
batch_size = 512  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
num_classes = 10
metainfo = dict()  # classes: those of the dataset's type
# The values above are what the places of `settings` are written with.
settings = {name: dict(default=globals()[name]) for name in _base_.settings if name in globals()}

# These images are RGB, those that mmcv reads from files are BGR.
rand_augment = dict(_base_.rand_augment, channel_order='rgb')
train_images = dict(
    type='mmpretrain.CIFAR10',
    data_root=data_root,
    metainfo=metainfo,
    split='train',
    download=False,
)
resize = dict(type='Resize', scale=image_size, interpolation='area')
train_pipeline = [
    resize,
    dict(type='RandomCrop', crop_size=crop_size, padding=4, pad_val=128),
    dict(type='RandomFlip', prob=0.5),
    rand_augment,
    dict(type='PackInputs', algorithm_keys=('soft_label',)),
]
test_pipeline = [resize, dict(type='PackInputs')]

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
    drop_last=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=batch_size, source_ratio=source_ratio),
    dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled_dataset, unlabeled_dataset]),
)
val_dataloader = dict(
    batch_size=256,
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
    batch_size=256,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpretrain.CIFAR10',
        data_root=data_root,
        metainfo=metainfo,
        split='test',
        download=False,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
