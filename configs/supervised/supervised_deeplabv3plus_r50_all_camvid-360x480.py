_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/camvid_labeled.py',
    '../_base_/schedules/schedule_4k_sgd.py',
    '../_base_/default_runtime.py',
]

labeled_list = ''  # all images of the folder
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
)
default_hooks = dict(checkpoint=dict(interval=400))
