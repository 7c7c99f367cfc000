_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/coco81_labeled.py',
    '../_base_/schedules/schedule_80k_sgd.py',
    '../_base_/default_runtime.py',
]

crop_size = (321, 321)
labeled_list = ''  # all images of the folder
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=81),
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
