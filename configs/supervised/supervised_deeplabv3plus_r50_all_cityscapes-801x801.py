# Optimizer, crop and sliding evaluation as in UniMatch, without its online hard example mining.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/cityscapes_labeled.py',
    '../_base_/schedules/schedule_80k_sgd.py',
    '../_base_/default_runtime.py',
]

crop_size = (801, 801)
labeled_list = ''  # all images of the folder
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=19, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(534, 534)),
)
optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=1e-4))
