# What the released code of Cross Teacher Training trains in effect on Cityscapes, 372 labels (the
# lists of 1/8 here hold 371): 16000 steps of 2 + 2 images of half size, without scaling and flips. Its
# stronger head and its pretrained weights, of which one set does not fit the input, are not repeated.
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/cityscapes_half.py',
    '../_base_/schedules/schedule_20k_sgd.py',
    '../_base_/default_runtime.py',
    '../_base_/methods/cross_teacher_released.py',
]

source_ratio = [1, 1]
batch_size = 4
resize_ratio = (1.0, 1.0)
max_iters = 16000
for dataset in _base_.train_dataloader.dataset.datasets:
    dataset.pipeline = [step for step in dataset.pipeline if step.type != 'RandomFlip']
train_dataloader = dict(dataset=dict(datasets=_base_.train_dataloader.dataset.datasets))
optim_wrapper = _base_.released_optimizer
segmentor = _base_.model
segmentor.data_preprocessor.size = _base_.crop_size
segmentor.decode_head.num_classes = _base_.num_classes
model = dict(_delete_=True, segmentor=segmentor, **_base_.method)
val_cfg = dict(networks=_base_.released_students)
test_cfg = dict(type='mmdmt.NetworksTestLoop', networks=_base_.released_students)
