# Mean Teacher on the small MSRC-21 benchmark of docs/results.md: 4 labeled and 4 unlabeled images.
_base_ = [
    '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py',
    '../_base_/methods/mean_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
# 1800 steps are few: averaged weights and averaged batch-norm statistics do not fit each other while
# the student still changes fast, so the teacher labels with the statistics of the batch.
semi_train_cfg = dict(_base_.semi_train_cfg, threshold=0.8, teacher_mode='train')
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
