# Cross Teacher Training on the small MSRC-21 benchmark of docs/results.md: 8 labeled images, as many
# as the baseline has, and 8 unlabeled ones in each step. Both students start from the same backbone
# and differ in their heads.
_base_ = [
    '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py',
    '../_base_/methods/cross_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
# 1800 steps are few: the teachers follow fast, so that averaged weights and averaged batch-norm
# statistics fit each other, and are trusted only as they get better. Small banks fill in them.
semi_train_cfg = dict(
    _base_.semi_train_cfg,
    threshold=0.9,
    rampup_iters=900,
    ema=dict(momentum=0.97),
    contrast=dict(
        _base_.semi_train_cfg.contrast,
        bank_size=64,
        bank_threshold=0.8,
        num_labeled=34,
        anchors_per_class=32,
        projection=dict(channels=64),
        # Some of the 21 classes are hardly ever predicted right and never fill their banks.
        start=0.5,
    ),
)
batch_size = 16
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
