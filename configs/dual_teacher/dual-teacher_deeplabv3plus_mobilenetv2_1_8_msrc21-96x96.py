# Dual Teacher on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many as the
# baseline has, and 8 unlabeled ones in each step.
_base_ = [
    '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py',
    '../_base_/methods/dual_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
# As for Mean Teacher in a run of 1800 steps: teachers that follow fast and are trusted only as they
# get better. Each teacher follows in half of the steps, so it moves twice as far in each.
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    threshold=0.9,
    rampup_iters=900,
    ema=dict(momentum=0.94),
)
batch_size = 16
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
# A pass over 34 labeled images is 5 steps, in which a teacher would not change. 50 steps are three
# times its memory of 1 / (1 - momentum), as a published shift (79 to 631 steps) is one to six times.
custom_hooks = [
    dict(type='mmdmt.SwitchTeacherHook', every=50),
    dict(type='mmdmt.TeacherUpdateHook'),
    dict(type='mmdmt.CouplingHook', interval=50),
]
