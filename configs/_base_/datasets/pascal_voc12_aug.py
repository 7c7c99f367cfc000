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
# Every setting of `overridable` may be set once, at the top level of a child config or by
# --cfg-options, e.g. data_root=/data/VOC2012: the runners put the new value wherever the old one
# was used (mmdmt.config). A list may also be an absolute path.
dataset_type = 'PascalVOCDataset'
data_root = 'data/VOCdevkit/VOC2012'
labeled_list = 'splits/1_8/fold_0/labeled.txt'
unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
crop_size = (321, 321)
resize_ratio = (0.5, 2.0)  # DMT uses (0.5, 1.5)
batch_size = 8  # labeled and unlabeled images together, on each device
overridable = dict(
    data_root=data_root,
    labeled_list=labeled_list,
    unlabeled_list=unlabeled_list,
    crop_size=crop_size,
    resize_ratio=resize_ratio,
    batch_size=batch_size,
)

sup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(500, 500), ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
unsup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResize', scale=(500, 500), ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=labeled_list,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
    pipeline=sup_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.UnlabeledDataset',
    data_root=data_root,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='JPEGImages'),
    pipeline=unsup_pipeline,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=batch_size, source_ratio=[1, 1]),
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
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
