# Dual Teacher with SegFormer B1 on ADE20K, 1263 labels, as published: on two devices, with 4 + 4
# images on each, the learning rate of SegFormer, and 200 passes over the labeled images. The learning
# rate decays until the end of them (the published code ends its decay at 50000 steps, always).
_base_ = [
    '../supervised/supervised_segformer_mit-b1_1_16_ade20k-512x512.py',
    '../_base_/methods/dual_teacher.py',
]

labeled_list = 'splits/1_16/fold_0/labeled.txt'
unlabeled_list = 'splits/1_16/fold_0/unlabeled.txt'

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
model = dict(
    _delete_=True,
    type='mmdmt.DualTeacher',
    segmentor=segmentor,
    data_preprocessor=data_preprocessor,
    semi_train_cfg=_base_.semi_train_cfg,
    semi_test_cfg=dict(predict_on='student'),
)
for dataset in (_base_.labeled_dataset, _base_.unlabeled_dataset):
    dataset.pipeline.insert(-1, dict(type='PhotoMetricDistortion'))
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
val_cfg = dict(type='mmdmt.NetworksValLoop')

max_iters = 31600  # 200 passes of 158 steps
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=max_iters, by_epoch=False),
]
