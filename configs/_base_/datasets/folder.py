# Your own images: any folder of images and masks.
#
# data_root/
#   images/{train,val}/**/*.jpg
#   masks/{train,val}/**/*.png       class ids from 0, 255 = not labeled; or any other values, or
#                                    colors, that `mask_values` names (docs/images.md)
#   splits/labeled.txt               names below images/train without suffix, one per line
#   splits/unlabeled.txt             the other names; tools/misc/split_dataset.py makes both
#
# In a child config, set:
#   data_root = '/path/to/your/data'
#   metainfo = dict(classes=('background', 'cat', 'dog'), palette=[[0, 0, 0], ...])
#     without a palette colors are made up
#   num_classes = 3
#   mask_values = {0: 'background', 255: 'object'}   if masks do not hold class ids
#   img_suffix, seg_map_suffix       if not .jpg and .png
#   dataset_type = 'mmdmt.FolderDataset'   if images and masks have several suffixes or folders
#   image_loader = dict(_delete_=True, type='mmdmt.LoadBands')   for .npy, 16 bits, more than 3 bands
#   image_size                       (width, height) that images are brought to before the random
#                                    resizing by resize_ratio; the aspect ratio is kept
# Unlabeled images need no mask. A folder of more of them, without a list, joins as
#   train_dataloader = dict(dataset=dict(datasets=[
#       {{_base_.labeled_dataset}},
#       dict(type='ConcatDataset', datasets=[
#           {{_base_.unlabeled_dataset}},
#           dict(type='mmdmt.UnlabeledDataset', data_prefix=dict(img_path='/path/to/more'),
#                img_suffix=('.jpg', '.png'), name_prefix='more/', metainfo={{_base_.metainfo}},
#                pipeline={{_base_.unsup_pipeline}}),
#       ])]))
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options, such as
# data_root=/data/mine (docs/configs.md). A list may also be an absolute path.
_base_ = '../settings.py'

dataset_type = 'BaseSegDataset'
data_root = 'data/mine'
labeled_list = 'splits/labeled.txt'
unlabeled_list = 'splits/unlabeled.txt'
val_list = ''  # all images of the folder
labeled_folders = dict(img_path='images/train', seg_map_path='masks/train')  # below data_root
unlabeled_folders = dict(img_path='images/train')
val_folders = dict(img_path='images/val', seg_map_path='masks/val')
img_suffix = '.jpg'
seg_map_suffix = '.png'
image_size = (2048, 512)
crop_size = (512, 512)
resize_ratio = (0.5, 2.0)
batch_size = 8  # labeled and unlabeled images together, on each device
source_ratio = [1, 0]  # of a batch: labeled images alone
metainfo = dict(classes=('background', 'object'))
num_classes = 2
mask_values = {}  # masks hold class ids
image_loader = dict(type='LoadImageFromFile', imdecode_backend='pillow')
# The values above are what the places of `settings` are written with.
settings = {name: dict(default=globals()[name]) for name in _base_.settings if name in globals()}
folder_settings = dict(
    dataset_type=dict(
        default=dataset_type,
        sets=[
            'train_dataloader.dataset.datasets.0.type',
            'val_dataloader.dataset.type',
            'test_dataloader.dataset.type',
        ],
    ),
    image_loader=dict(default=image_loader, sets=['*_dataloader.**.pipeline.0', '*_pipeline.0']),
)

sup_pipeline = [
    image_loader,
    dict(type='mmdmt.LoadMasks', mask_values=mask_values),
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
unsup_pipeline = [
    image_loader,
    dict(type='RandomResize', scale=image_size, ratio_range=resize_ratio, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
test_pipeline = [
    image_loader,
    dict(type='Resize', scale=image_size, keep_ratio=True),
    # After Resize: the labels keep their size.
    dict(type='mmdmt.LoadMasks', mask_values=mask_values),
    dict(type='PackSegInputs'),
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    ann_file=labeled_list,
    data_prefix=labeled_folders,
    pipeline=sup_pipeline,
)
unlabeled_dataset = dict(
    type='mmdmt.UnlabeledDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    ann_file=unlabeled_list,
    data_prefix=unlabeled_folders,
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
        data_prefix=val_folders,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
