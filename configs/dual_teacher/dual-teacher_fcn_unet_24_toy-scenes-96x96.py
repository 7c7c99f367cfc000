# Dual Teacher on the generated scenes of the demo, for the coupling curves of docs/dual_teacher.md.
#   python -c "from toy_scenes import generate; generate('data/toy_scenes')"
_base_ = [
    '../demo/supervised_fcn_unet_24_toy-scenes-96x96.py',
    '../_base_/methods/dual_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
data_preprocessor.test_cfg = dict(size_divisor=32)
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    threshold=0.9,
    rampup_iters=200,
    ema=dict(momentum=0.95),
    sub_model=None,  # a U-Net has no residual blocks
)
model = dict(
    _delete_=True,
    type='mmdmt.DualTeacher',
    segmentor=segmentor,
    data_preprocessor=data_preprocessor,
    semi_train_cfg=semi_train_cfg,
    semi_test_cfg=dict(predict_on='student'),
)
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
val_cfg = dict(type='mmdmt.NetworksValLoop')
custom_hooks = [
    dict(type='mmdmt.SwitchTeacherHook', every=40),
    dict(type='mmdmt.TeacherUpdateHook'),
    dict(type='mmdmt.CouplingHook', interval=5),
]
default_hooks = dict(logger=dict(interval=5))
