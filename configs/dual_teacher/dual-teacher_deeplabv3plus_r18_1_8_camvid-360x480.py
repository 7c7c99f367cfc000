# Dual Teacher with DeepLabV3+ R18 on CamVid, one label in eight images.
_base_ = [
    '../supervised/supervised_deeplabv3plus_r18_1_8_camvid-360x480.py',
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
# A pass over 45 labeled images is 12 steps, a tenth of what a teacher remembers: longer shifts.
custom_hooks = [
    dict(type='mmdmt.SwitchTeacherHook', every=200),
    dict(type='mmdmt.TeacherUpdateHook'),
    dict(type='mmdmt.CouplingHook', interval=50),
]
