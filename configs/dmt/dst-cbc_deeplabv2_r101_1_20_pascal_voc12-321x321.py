# DST-CBC as published on VOC 2012 with 530 labels: one member, from COCO weights, labels for itself.
#
# Images are squashed to a random height and width between crop and test size, and labeled at the
# size of the crop; DMT replaced both. The published runs go on with the checkpoint that is best on
# the validation images over all rounds so far (`--cfg-options mutual.select=best_so_far`).
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

source_ratio = [4, 4]
image_size = (505, 505)
squash = dict(type='RandomResize', scale=[_base_.crop_size, image_size], keep_ratio=False)
sup_pipeline = [*_base_.sup_pipeline[:2], squash, *_base_.sup_pipeline[3:]]
unsup_pipeline = [_base_.unsup_pipeline[0], squash, *_base_.unsup_pipeline[2:]]
# Crop and image are squares: width and height need no exchange.
settings = dict(
    resize_ratio=dict(default=_base_.resize_ratio, fixed='images are squashed, not scaled, here'),
    image_size=dict(
        _delete_=True, default=image_size, sets=['train_dataloader.**.RandomResize.scale.1']
    ),
)
squash_settings = dict(
    crop_size=dict(
        default=_base_.crop_size,
        sets=['train_dataloader.**.RandomResize.scale.0', 'mutual.labeling.pipeline.**.scale'],
    ),
)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(_base_.labeled_dataset, pipeline=sup_pipeline),
            dict(_base_.unlabeled_dataset, pipeline=unsup_pipeline),
        ]
    ),
)
train_cfg = dict(val_interval=1000)
mutual = dict(
    members=[dict(_base_.coco_member, name='coco', seed=4396)],
    round=dict(_base_.run.dst_cbc.round, lr=0.002),
    pseudo_loss=dict(_delete_=True, type='mmdmt.DynamicSelfLoss', gamma=9.0),
    labeling=dict(
        rule='threshold_ratio',
        pipeline=[
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            dict(type='Resize', scale=_base_.crop_size, keep_ratio=False),
            dict(type='PackSegInputs'),
        ],
    ),
)
