# DMT as published on Cityscapes with 371 labels, trained and scored at 512x1024.
#
# The published runs go on with the checkpoint that is best on the validation images
# (`--cfg-options mutual.select=best`) and train in mixed precision (`--amp`).
_base_ = [
    '../_base_/models/deeplabv2_r101-d8.py',
    '../_base_/datasets/cityscapes_half.py',
    '../_base_/schedules/schedule_20k_sgd.py',
    '../_base_/default_runtime.py',
    '../_base_/methods/dmt_published.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [2, 6]
run = _base_.published.cityscapes['1_8']
padding = 'black'
coco_member = dict(
    load_from='pretrained/deeplabv2_r101_coco_backbone.pth',
    cfg_options=dict(_base_.coco_options, allow_unmatched=['decode_head']),
)
# Two of the four convolutions, as published.
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes, num_summed=2, init_cfg=None),
)
optim_wrapper = dict(optimizer=dict(lr=0.004))
train_cfg = dict(val_interval=300)
mutual = dict(
    members=[dict(coco_member, name='coco', seed=1), dict(name='imagenet', seed=2)],
    supervised=dict(run.dmt.supervised, lr=0.004),
    round=dict(run.dmt.round, lr=0.004),
    pseudo_loss=_base_.gammas.cityscapes,
    # Labels are made, stored and cropped at the size of training, whatever is scored.
    labeling=dict(pipeline=_base_.labeling_pipeline),
)
