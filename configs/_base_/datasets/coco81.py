# COCO 2017: 118287 training images, 5000 val, the 80 object classes and background.
#
# data_root/
#   {train,val}2017/*.jpg
#   masks81/{train,val}2017/*.png    made by tools/dataset_converters/coco81.py
#   splits/1_32/fold_0/{labeled,unlabeled}.txt     from tools/misc/split_dataset.py
#
# Images keep their size: the longer side of COCO images is 640. Validation takes whole images.
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options, such as
# data_root=/data/mine (docs/configs.md). A list may also be an absolute path.
_base_ = '../settings.py'

dataset_type = 'BaseSegDataset'
data_root = 'data/coco'
labeled_list = 'splits/1_32/fold_0/labeled.txt'
unlabeled_list = 'splits/1_32/fold_0/unlabeled.txt'
val_list = ''  # all images of the folder
img_suffix = '.jpg'
seg_map_suffix = '.png'
image_size = (640, 640)  # (width, height) before random resizing
crop_size = (513, 513)
resize_ratio = (0.5, 2.0)
batch_size = 8  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
metainfo = dict(
    classes=(
        'background', 'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train',
        'truck', 'boat', 'traffic light', 'fire hydrant', 'stop sign', 'parking meter', 'bench',
        'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra', 'giraffe',
        'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard',
        'sports ball', 'kite', 'baseball bat', 'baseball glove', 'skateboard', 'surfboard',
        'tennis racket', 'bottle', 'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl',
        'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot', 'hot dog', 'pizza',
        'donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', 'dining table', 'toilet', 'tv',
        'laptop', 'mouse', 'remote', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster',
        'sink', 'refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier',
        'toothbrush',
    ),
)  # fmt: skip
num_classes = 81
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
    data_prefix=dict(img_path='train2017', seg_map_path='masks81/train2017'),
    pipeline=sup_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.UnlabeledDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='train2017'),
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
        data_prefix=dict(img_path='val2017', seg_map_path='masks81/val2017'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
