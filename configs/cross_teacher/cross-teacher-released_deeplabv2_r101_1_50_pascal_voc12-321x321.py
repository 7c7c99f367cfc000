# What the released code of Cross Teacher Training sets for PASCAL VOC 2012, 212 labels (the lists of
# 1/50 here hold 211): 160000 steps of 10 + 10 images, scaled by 0.5 to 1.6 of their own size, without
# flips and mixing. As it is released it stops with an error there, since its code for mixing expects a
# mask.
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_20k_sgd.py',
    '../_base_/default_runtime.py',
    '../_base_/methods/cross_teacher_released.py',
]

labeled_list = 'splits/1_50/fold_0/labeled.txt'
unlabeled_list = 'splits/1_50/fold_0/unlabeled.txt'
evaluation_protocol = 'pascal_voc12_padded'
source_ratio = [1, 1]
batch_size = 20
resize_ratio = (0.5, 1.6)
max_iters = 160000
train_cfg = dict(val_interval=16000)
# As written: the setting above goes there too.
rescale = dict(type='mmdmt.RandomRescale', ratio_range=_base_.resize_ratio)
settings = dict(
    image_size=dict(default=_base_.image_size, fixed='images are scaled from their own size here')
)
for dataset in _base_.train_dataloader.dataset.datasets:
    steps = [step for step in dataset.pipeline if step.type != 'RandomFlip']
    dataset.pipeline = [rescale if step.type == 'RandomResize' else step for step in steps]
train_dataloader = dict(dataset=dict(datasets=_base_.train_dataloader.dataset.datasets))
optim_wrapper = _base_.released_optimizer
segmentor = _base_.model
segmentor.data_preprocessor.size = _base_.crop_size
segmentor.decode_head.num_classes = _base_.num_classes
model = dict(_delete_=True, segmentor=segmentor, **dict(_base_.method, mix=None))
val_cfg = dict(networks=_base_.released_students)
test_cfg = dict(type='mmdmt.NetworksTestLoop', networks=_base_.released_students)
