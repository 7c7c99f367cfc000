# Cross Teacher Training on your own images: see ../_base_/datasets/folder.py for what to set.
_base_ = [
    '../supervised/supervised_deeplabv3plus_mobilenetv2_labeled_folder-512x512.py',
    '../_base_/methods/cross_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
# A class that is never predicted right never fills its bank: start with half of them.
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    contrast=dict(_base_.semi_train_cfg.contrast, start=0.5),
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
