# Cross Teacher Training with SegFormer B1 on Cityscapes, 372 labeled images.
_base_ = [
    '../supervised/supervised_segformer_mit-b1_1_8_cityscapes-1024x1024.py',
    '../_base_/methods/cross_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    contrast=dict(_base_.semi_train_cfg.contrast, num_labeled=372),
)
model = dict(
    _delete_=True,
    type='mmdmt.CrossTeacher',
    segmentor=segmentor,
    data_preprocessor=data_preprocessor,
    semi_train_cfg=semi_train_cfg,
    semi_test_cfg=dict(predict_on='teacher_average'),
)
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
val_cfg = dict(type='mmdmt.NetworksValLoop', networks=_base_.networks)
test_cfg = dict(type='mmdmt.NetworksTestLoop', networks=_base_.networks)
