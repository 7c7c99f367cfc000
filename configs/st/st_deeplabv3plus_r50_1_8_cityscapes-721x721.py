# ST with DeepLabV3+ R50 on Cityscapes, 371 labels: batch, rate and crop as published, evaluation in
# windows as for the other methods here (published: whole images).
_base_ = ['../supervised/deeplabv3plus_r50_cityscapes-801x801.py', '../_base_/methods/st.py']

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 1]
batch_size = 16
crop_size = (721, 721)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
model = dict(data_preprocessor=dict(size=crop_size))
optim_wrapper = dict(
    optimizer=dict(lr=0.004), paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0)))
)
mutual = _base_.st_runs.cityscapes['371'].st
