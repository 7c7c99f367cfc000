# Optimizer, batch and length as in CutMix-Seg: Adam at one constant rate, frozen statistics of batch
# norm.
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_40k_sgd.py',
    '../_base_/default_runtime.py',
]

resize_ratio = (0.5, 1.5)
batch_size = 20
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(norm_eval=True),
    decode_head=dict(num_classes=_base_.num_classes),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=3e-5))
param_scheduler = [
    dict(type='ConstantLR', factor=1.0, begin=0, end=_base_.max_iters, by_epoch=False)
]
