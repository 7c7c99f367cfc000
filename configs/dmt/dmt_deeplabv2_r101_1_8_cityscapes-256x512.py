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

labeled_list = 'splits/1_8/fold_0/labeled.txt'
unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
steps = _base_.published_steps.cityscapes['1_8']
# COCO weights of Caffe: BGR from 0 to 255, only the mean subtracted. The file is made by
# tools/model_converters/advsemiseg_deeplabv2.py --without-classifier.
coco_member = dict(
    load_from='pretrained/deeplabv2_r101_coco_backbone.pth',
    cfg_options=dict(
        model=dict(
            data_preprocessor=dict(
                mean=[104.008, 116.669, 122.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False
            ),
            backbone=dict(init_cfg=None),
        )
    ),
)

runner_type = 'mmdmt.MutualTrainingRunner'
data_preprocessor = dict(size=_base_.crop_size)
# Two of the four convolutions, as published.
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=19, num_summed=2),
)
optim_wrapper = dict(optimizer=dict(lr=0.004))
train_cfg = dict(val_interval=350)
mutual = dict(
    members=[dict(coco_member, name='coco', seed=1), dict(name='imagenet', seed=2)],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    supervised=dict(max_iters=steps.supervised, lr=0.004),
    round=dict(max_iters=steps.dmt_round, lr=0.004, source_ratio=[2, 6]),
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=3.0, gamma2=3.0),
    # Labels are made, stored and cropped at the size of training, whatever is scored.
    labeling=dict(pipeline=_base_.labeling_pipeline),
)
