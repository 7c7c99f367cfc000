# DST-CBC as published on Cityscapes with 371 labels: one member, from COCO weights, labels for
# itself. Scored at 513x1025, labeled at the size of the crop, 257x513.
#
# The published code holds no gamma for Cityscapes; 5 lies between its 9 for VOC and DMT's 3. That
# images are squashed to a height and width between crop and test size is taken over from VOC. The
# published runs go on with the checkpoint that is best on the validation images
# (`--cfg-options mutual.select=best`).
_base_ = './dmt_deeplabv2_r101_1_8_cityscapes-256x512.py'

image_size = (1025, 513)  # (width, height)
crop_size = (257, 513)
overridable = dict(image_size=image_size, crop_size=crop_size)

squash = dict(type='RandomResize', scale=[(513, 257), (1025, 513)], keep_ratio=False)
sup_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size, imdecode_backend='pillow'),
    dict(type='mmdmt.LoadAnnotationsAtImageSize'),
    squash,
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
unsup_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size, imdecode_backend='pillow'),
    squash,
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
labeling_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size),
    dict(type='Resize', scale=(513, 257), keep_ratio=False),
    dict(type='PackSegInputs'),
]
half_size_pipeline = [
    dict(type='mmdmt.LoadImageAtSize', scale=image_size),
    dict(type='mmdmt.LoadAnnotationsAtImageSize'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    sampler=dict(source_ratio=[4, 4]),
    dataset=dict(
        datasets=[
            dict(_base_.labeled_dataset, pipeline=sup_pipeline),
            dict(_base_.unlabeled_dataset, pipeline=unsup_pipeline),
        ]
    ),
)
val_dataloader = dict(dataset=dict(pipeline=half_size_pipeline))
test_dataloader = dict(dataset=dict(pipeline=half_size_pipeline))
model = dict(data_preprocessor=dict(size=crop_size))
optim_wrapper = dict(optimizer=dict(lr=0.002))
mutual = dict(
    members=[dict(_base_.coco_member, name='coco', seed=4396)],
    supervised=dict(lr=0.002),
    round=dict(max_iters=_base_.steps.dst_cbc_round, lr=0.002, source_ratio=[4, 4]),
    pseudo_loss=dict(_delete_=True, type='mmdmt.DynamicSelfLoss', gamma=5.0),
    labeling=dict(rule='threshold_ratio', pipeline=labeling_pipeline),
)
