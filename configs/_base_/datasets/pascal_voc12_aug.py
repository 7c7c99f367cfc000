# PASCAL VOC 2012 with the masks of SBD: 10582 training images (trainaug), 1449 val, 21 classes.
#
# data_root/
#   JPEGImages/*.jpg
#   SegmentationClassAug/*.png       made by tools/dataset_converters/voc_aug.py
#   SegmentationClass/*.png          of VOC itself, for validation
#   ImageSets/Segmentation/val.txt
#   splits/1_8/fold_0/{labeled,unlabeled}.txt      from tools/misc/split_dataset.py
#
# Images keep their size: the longer side of VOC images is 500. Validation takes whole images.
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options, such as
# data_root=/data/mine (docs/configs.md). A list may also be an absolute path.
_base_ = '../settings.py'

dataset_type = 'PascalVOCDataset'
data_root = 'data/VOCdevkit/VOC2012'
labeled_list = 'splits/1_8/fold_0/labeled.txt'
unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
val_list = 'ImageSets/Segmentation/val.txt'
img_suffix = '.jpg'
seg_map_suffix = '.png'
image_size = (500, 500)  # (width, height) before random resizing
crop_size = (321, 321)
resize_ratio = (0.5, 2.0)  # DMT uses (0.5, 1.5)
batch_size = 8  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
metainfo = dict()  # classes and palette: those of the dataset's type
num_classes = 21
# The values above are what the places of `settings` are written with.
settings = {name: dict(default=globals()[name]) for name in _base_.settings if name in globals()}

sup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
unsup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
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
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
    pipeline=sup_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.UnlabeledDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='JPEGImages'),
    pipeline=unsup_pipeline,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=batch_size, source_ratio=source_ratio),
    dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled_dataset, unlabeled_dataset]),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        img_suffix=img_suffix,
        seg_map_suffix=seg_map_suffix,
        ann_file=val_list,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
