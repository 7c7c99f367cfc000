# Cityscapes at half its size, as DMT trains and scores it: images and labels are brought to 512x1024
# when they are loaded, crops are 256x512. The layout of the folder is that of cityscapes.py.
#
# Scores at this size cannot be compared with those at full size: `cityscapes_half_input` scores the
# same network at full size (docs/configs.md).
_base_ = './cityscapes.py'

image_size = (1024, 512)  # (width, height)
crop_size = (256, 512)
resize_ratio = (0.5, 1.5)
batch_size = 8
overridable = dict(
    image_size=image_size, crop_size=crop_size, resize_ratio=resize_ratio, batch_size=batch_size
)

sup_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size, imdecode_backend='pillow'),
    dict(type='mmdmt.LoadAnnotationsAtImageSize'),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
unsup_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size, imdecode_backend='pillow'),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
labeling_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size),
    dict(type='PackSegInputs'),
]
half_size_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size),
    dict(type='mmdmt.LoadAnnotationsAtImageSize'),
    dict(type='PackSegInputs'),
]
# Of inferencers: a prediction of the size of the file.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

labeled_dataset = dict(pipeline=sup_pipeline)
unlabeled_dataset = dict(pipeline=unsup_pipeline)
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(batch_size=batch_size),
    dataset=dict(
        datasets=[
            dict(_base_.labeled_dataset, pipeline=sup_pipeline),
            dict(_base_.unlabeled_dataset, pipeline=unsup_pipeline),
        ]
    ),
)
val_dataloader = dict(dataset=dict(pipeline=half_size_pipeline))
test_dataloader = dict(dataset=dict(pipeline=half_size_pipeline))
