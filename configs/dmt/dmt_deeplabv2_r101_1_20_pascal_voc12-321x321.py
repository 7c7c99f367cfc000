# DMT as published on VOC 2012 with 530 labels: members from COCO and from ImageNet weights.
#
# The published runs go on with the checkpoint that is best on the validation images
# (`--cfg-options mutual.select=best`) and train in mixed precision (`--amp`).
_base_ = [
    '../supervised/deeplabv2_r101_pascal_voc12-321x321.py',
    '../_base_/methods/dmt_published.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
run = _base_.published.pascal_voc12['1_20']
labeled_list, unlabeled_list = run.lists
source_ratio = [1, 7]
evaluation_protocol = 'pascal_voc12_padded'
padding = 'black'
rescale = dict(type='mmdmt.RandomRescale', ratio_range=_base_.resize_ratio)
# As written: the setting above goes there too. Images are padded before they are flipped.
pad = dict(type='mmdmt.PadToCrop', size=_base_.crop_size, padding='mean')
load, load_labels, _, crop, *flip_pack = _base_.sup_pipeline
sup_pipeline = [load, load_labels, rescale, crop, pad, *flip_pack]
unsup_pipeline = [load, rescale, crop, pad, *flip_pack]
settings = dict(
    resize_ratio=dict(default=_base_.resize_ratio),
    image_size=dict(default=_base_.image_size, fixed='images are scaled from their own size here'),
)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(_base_.labeled_dataset, pipeline=sup_pipeline),
            dict(_base_.unlabeled_dataset, pipeline=unsup_pipeline),
        ]
    ),
)
coco_member = dict(load_from='pretrained/deeplabv2_r101_coco.pth', cfg_options=_base_.coco_options)
# Two of the four convolutions, which is what the COCO weights and the published results are of.
model = dict(decode_head=dict(num_summed=2, init_cfg=None))
train_cfg = dict(val_interval=500)
mutual = dict(
    members=[dict(coco_member, name='coco', seed=1), dict(name='imagenet', seed=2)],
    supervised=dict(run.dmt.supervised, lr=0.002),
    round=dict(run.dmt.round, lr=0.001),
)
