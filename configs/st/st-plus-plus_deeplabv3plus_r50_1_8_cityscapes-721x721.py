# ST++ with DeepLabV3+ R50 on Cityscapes, 371 labels: batch, rate and crop as published, evaluation in
# windows as for the other methods here (published: whole images).
_base_ = [
    '../supervised/deeplabv3plus_r50_cityscapes-801x801.py',
    '../_base_/methods/st_plus_plus.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio, batch_size, crop_size = [1, 1], 16, (721, 721)
model = dict(data_preprocessor=dict(size=crop_size))
head_lr = dict(custom_keys=dict(head=dict(lr_mult=10.0)))
optim_wrapper = dict(optimizer=dict(lr=0.004), paramwise_cfg=head_lr)
mutual = _base_.st_runs.cityscapes['371'].st_plus_plus
