# Cityscapes at half its size, as DMT trains and scores it: images and labels are brought to 512x1024
# when they are loaded, crops are 256x512. The layout of the folder is that of cityscapes.py.
#
# Scores at this size cannot be compared with those at full size: `cityscapes_half_input` scores the
# same network at full size (docs/configs.md).
_base_ = './cityscapes.py'

image_size = (1024, 512)  # (width, height)
crop_size = (256, 512)
half_settings = dict(crop_size=dict(default=crop_size))  # models are written with this one
resize_ratio = (0.5, 1.5)
batch_size = 8

# Written with the values of cityscapes.py: the settings above go there as everywhere.
load_image = dict(type='mmdmt.LoadImageAtSize', scale=_base_.image_size, imdecode_backend='pillow')
load_labels = dict(type='mmdmt.LoadAnnotationsAtImageSize')
sup_pipeline = [load_image, load_labels, *_base_.sup_pipeline[2:]]
unsup_pipeline = [load_image, *_base_.unsup_pipeline[1:]]
labeling_pipeline = [
    load_image,
    dict(type='PackSegInputs'),
]
half_size_pipeline = [
    load_image,
    load_labels,
    dict(type='PackSegInputs'),
]
# Of inferencers: a prediction of the size of the file.
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='Resize', scale=_base_.image_size, keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

labeled_dataset = dict(pipeline=sup_pipeline)
unlabeled_dataset = dict(pipeline=unsup_pipeline)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(_base_.labeled_dataset, pipeline=sup_pipeline),
            dict(_base_.unlabeled_dataset, pipeline=unsup_pipeline),
        ]
    ),
)
val_dataloader = dict(dataset=dict(pipeline=half_size_pipeline))
test_dataloader = dict(dataset=dict(pipeline=half_size_pipeline))
