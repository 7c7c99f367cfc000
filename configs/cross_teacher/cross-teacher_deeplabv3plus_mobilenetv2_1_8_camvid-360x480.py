# Cross Teacher Training with a small network on CamVid, one label in eight images.
_base_ = [
    '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_camvid-360x480.py',
    '../_base_/methods/cross_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
# Few steps: small banks, and a start with half of the classes, since rare ones fill slowly.
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    contrast=dict(
        _base_.semi_train_cfg.contrast,
        num_labeled=45,
        bank_size=64,
        projection=dict(channels=64),
        start=0.5,
    ),
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
