# Dual Teacher with DeepLabV2 R101 on PASCAL VOC 2012 with SBD, one label in eight images.
_base_ = [
    '../supervised/supervised_deeplabv2_r101_1_8_pascal_voc12-321x321.py',
    '../_base_/methods/dual_teacher.py',
]

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
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
val_cfg = dict(type='mmdmt.NetworksValLoop')
