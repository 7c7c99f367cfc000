# Mean Teacher with SegFormer B1 on ADE20K, one label in eight images.
_base_ = [
    '../supervised/supervised_segformer_mit-b1_1_8_ade20k-512x512.py',
    '../_base_/methods/mean_teacher.py',
]

segmentor = _base_.model
segmentor.pop('data_preprocessor')
data_preprocessor = _base_.semi_data_preprocessor
data_preprocessor.size = _base_.crop_size
model = dict(
    _delete_=True,
    type='mmdmt.MeanTeacher',
    segmentor=segmentor,
    data_preprocessor=data_preprocessor,
    semi_train_cfg=_base_.semi_train_cfg,
    semi_test_cfg=dict(predict_on='teacher'),
)
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
val_cfg = dict(type='mmdmt.NetworksValLoop')
