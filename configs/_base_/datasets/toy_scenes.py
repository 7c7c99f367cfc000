# Procedural landscapes of 128x96 with 11 classes, painted by
#   python examples/toy_scenes.py data/toy_scenes
# 24 labeled of 320 for training, 20 val, 100 test.
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options.
_base_ = '../settings.py'

dataset_type = 'BaseSegDataset'
data_root = 'data/toy_scenes'
labeled_list = 'splits/labeled.txt'
unlabeled_list = 'splits/unlabeled.txt'
val_list = 'splits/val.txt'
img_suffix = '.jpg'
seg_map_suffix = '.png'
image_size = (128, 96)  # (width, height) before random resizing
crop_size = (96, 96)
resize_ratio = (0.95, 1.25)
batch_size = 8  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
metainfo = dict(
    classes=(
        'sky', 'mountain', 'grass', 'sand', 'water', 'tree', 'rock', 'house', 'tent', 'boat',
        'balloon',
    ),
    palette=[
        [135, 190, 235], [128, 112, 150], [120, 180, 80], [225, 200, 130], [50, 105, 175],
        [25, 95, 50], [125, 125, 125], [190, 80, 60], [240, 150, 40], [95, 225, 215],
        [200, 60, 150],
    ],
)  # fmt: skip
num_classes = 11
# The values above are what the places of `settings` are written with.
settings = {name: dict(default=globals()[name]) for name in _base_.settings if name in globals()}

sup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmdmt.PackSemiInputs'),
]
unsup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmdmt.PackSemiInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    ann_file=labeled_list,
    data_prefix=dict(img_path='img/train', seg_map_path='ann/train'),
    pipeline=sup_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.UnlabeledDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='img/train'),
    pipeline=unsup_pipeline,
)
# No workers: an image of this size is loaded in a millisecond.
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=batch_size, source_ratio=source_ratio),
    dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled_dataset, unlabeled_dataset]),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        img_suffix=img_suffix,
        seg_map_suffix=seg_map_suffix,
        ann_file=val_list,
        data_prefix=dict(img_path='img/val', seg_map_path='ann/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=10,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        img_suffix=img_suffix,
        seg_map_suffix=seg_map_suffix,
        ann_file='splits/test.txt',
        data_prefix=dict(img_path='img/test', seg_map_path='ann/test'),
        pipeline=test_pipeline,
    ),
)

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
