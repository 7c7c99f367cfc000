# At full resolution; DMT as published trains and scores at half of it.
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/cityscapes_labeled.py',
    '../_base_/schedules/schedule_40k_sgd.py',
    '../_base_/default_runtime.py',
]

labeled_list = ''  # all images of the folder
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=19),
)
optim_wrapper = dict(optimizer=dict(lr=0.004))
