# DMT as published on VOC 2012 with 530 labels: members from COCO and from ImageNet weights.
#
# The published runs go on with the checkpoint that is best on the validation images
# (`--cfg-options mutual.select=best`) and train in mixed precision (`--amp`).
_base_ = [
    '../supervised/supervised_deeplabv2_r101_1_20_pascal_voc12-321x321.py',
    '../_base_/methods/dmt_published.py',
]

unlabeled_list = 'splits/1_20/fold_0/unlabeled.txt'
evaluation_protocol = 'pascal_voc12_padded'
steps = _base_.published_steps.pascal_voc12['1_20']
# COCO weights of Caffe: BGR from 0 to 255, only the mean subtracted. The file is made by
# tools/model_converters/advsemiseg_deeplabv2.py.
coco_member = dict(
    load_from='pretrained/deeplabv2_r101_coco.pth',
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
# Two of the four convolutions, which is what the COCO weights and the published results are of.
model = dict(decode_head=dict(num_summed=2))
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 7]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
train_cfg = dict(val_interval=500)
mutual = dict(
    members=[dict(coco_member, name='coco', seed=1), dict(name='imagenet', seed=2)],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    supervised=dict(max_iters=steps.supervised, lr=0.002),
    round=dict(max_iters=steps.dmt_round, lr=0.001, source_ratio=[1, 7]),
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0),
)
