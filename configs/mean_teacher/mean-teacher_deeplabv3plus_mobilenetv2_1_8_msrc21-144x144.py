# Mean Teacher on the small MSRC-21 benchmark of docs/results.md: 4 labeled and 4 unlabeled images.
_base_ = [
    '../_base_/models/deeplabv3plus_mobilenetv2-d16.py',
    '../_base_/datasets/msrc21-144.py',
    '../_base_/schedules/schedule_cpu_adamw.py',
    '../_base_/methods/mean_teacher.py',
    '../_base_/default_runtime.py',
]

channels_last = True
segmentor = _base_.model
segmentor.decode_head.num_classes = 21
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
val_cfg = dict(type='mmdmt.NetworksValLoop')
default_hooks = dict(checkpoint=dict(interval=600))
