# Cityscapes: 2975 training images of 2048x1024, 500 val, 19 classes.
#
# data_root/
#   leftImg8bit/{train,val}/<city>/*_leftImg8bit.png
#   gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png
#                                    made by tools/dataset_converters/cityscapes.py
#   splits/1_8/fold_0/{labeled,unlabeled}.txt      from tools/misc/split_dataset.py
#
# Names on the lists are <city>/<city>_000000_000019. Validation is at full size; DMT as published
# halves images and labels, see its configs.
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options, such as
# data_root=/data/mine (docs/configs.md). A list may also be an absolute path.
_base_ = '../settings.py'

dataset_type = 'CityscapesDataset'
data_root = 'data/cityscapes'
labeled_list = 'splits/1_8/fold_0/labeled.txt'
unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
val_list = ''  # all images of the folder
img_suffix = '_leftImg8bit.png'
seg_map_suffix = '_gtFine_labelTrainIds.png'
image_size = (2048, 1024)  # (width, height) before random resizing
crop_size = (512, 1024)
resize_ratio = (0.5, 2.0)
batch_size = 4  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
metainfo = dict()  # classes and palette: those of the dataset's type
num_classes = 19
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
    data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
    pipeline=sup_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.UnlabeledDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='leftImg8bit/train'),
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
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
