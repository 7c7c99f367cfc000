# Mean Teacher on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many as the
# baseline has, and 8 unlabeled ones in each step.
_base_ = [
    '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py',
    '../_base_/methods/mean_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
# 1800 steps are few: the teacher follows fast, so that averaged weights and averaged batch-norm
# statistics fit each other, and is trusted only as it gets better.
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    threshold=0.9,
    rampup_iters=900,
    ema=dict(momentum=0.97),
)
batch_size = 16
model = dict(
    _delete_=True,
    type='mmdmt.MeanTeacher',
    segmentor=segmentor,
    data_preprocessor=data_preprocessor,
    semi_train_cfg=semi_train_cfg,
    semi_test_cfg=dict(predict_on='teacher'),
)
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
val_cfg = dict(type='mmdmt.NetworksValLoop')
