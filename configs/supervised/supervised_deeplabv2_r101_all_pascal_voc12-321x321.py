# Resizing and learning rate, one for backbone and head, as in DMT.
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/pascal_voc12_aug_labeled.py',
    '../_base_/schedules/schedule_20k_sgd.py',
    '../_base_/default_runtime.py',
]

labeled_list = 'ImageSets/Segmentation/trainaug.txt'
resize_ratio = (0.5, 1.5)
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=21),
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
