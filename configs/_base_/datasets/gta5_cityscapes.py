# Labeled images of GTA5 (24,966 of 1914x1052), unlabeled ones of Cityscapes train, scored on
# Cityscapes val at full size over the 19 classes.
#
# labeled_root/                      made by tools/dataset_converters/gta5.py
#   images/*.png, labels/*_labelTrainIds.png, train.txt
# data_root/                         of Cityscapes, as in cityscapes.py, with its train.txt
#
# Images of GTA5 are brought to 1280x720, those of Cityscapes to 1024x512, predictions to 2048x1024.
# Each source has its own root, list, suffixes, size and pipeline: docs/domain_shift.md.
_base_ = './cityscapes_target.py'

labeled_root = 'data/gta5'
labeled_list = 'train.txt'
labeled_img_suffix = '.png'
labeled_seg_map_suffix = '_labelTrainIds.png'
labeled_image_size = (1280, 720)  # (width, height) before random resizing
# What the labeled source has instead of the settings of the same name without `labeled_`.
shift_settings = dict(
    labeled_root=dict(
        default=labeled_root, sets=['train_dataloader.dataset.datasets.0.**.data_root']
    ),
    labeled_img_suffix=dict(
        default=labeled_img_suffix, sets=['train_dataloader.dataset.datasets.0.**.img_suffix']
    ),
    labeled_seg_map_suffix=dict(
        default=labeled_seg_map_suffix,
        sets=['train_dataloader.dataset.datasets.0.**.seg_map_suffix'],
    ),
    labeled_image_size=dict(
        default=labeled_image_size, sets=['train_dataloader.dataset.datasets.0.**.scale']
    ),
    labeled_list=dict(default=labeled_list),
)

sup_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(_base_.sup_pipeline[2], scale=labeled_image_size),
    *_base_.sup_pipeline[3:],
]
labeled_dataset = dict(
    data_root=labeled_root,
    img_suffix=labeled_img_suffix,
    seg_map_suffix=labeled_seg_map_suffix,
    ann_file=labeled_list,
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    pipeline=sup_pipeline,
)
train_dataloader = dict(
    dataset=dict(
        datasets=[dict(_base_.labeled_dataset, **labeled_dataset), _base_.unlabeled_dataset]
    )
)
