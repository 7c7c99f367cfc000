_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/ade20k_labeled.py',
    '../_base_/schedules/schedule_40k_sgd.py',
    '../_base_/default_runtime.py',
]

labeled_list = ''  # all images of the folder
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=150),
)
optim_wrapper = dict(optimizer=dict(lr=0.004))
