# Set data_root, metainfo and num_classes, see the data set config.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/folder_labeled.py',
    '../_base_/schedules/schedule_20k_sgd.py',
    '../_base_/default_runtime.py',
]

labeled_list = 'splits/labeled.txt'
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=2),
)
