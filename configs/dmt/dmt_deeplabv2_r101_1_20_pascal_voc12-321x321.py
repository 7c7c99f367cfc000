# DMT as published on VOC 2012 with 530 labels: members from COCO and from ImageNet weights.
#
# The published runs go on with the checkpoint that is best on the validation images
# (`--cfg-options mutual.select=best`) and train in mixed precision (`--amp`).
_base_ = [
    '../supervised/deeplabv2_r101_pascal_voc12-321x321.py',
    '../_base_/methods/dmt_published.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
labeled_list = 'splits/1_20/fold_0/labeled.txt'
unlabeled_list = 'splits/1_20/fold_0/unlabeled.txt'
source_ratio = [1, 7]
evaluation_protocol = 'pascal_voc12_padded'
steps = _base_.published_steps.pascal_voc12['1_20']
coco_member = dict(load_from='pretrained/deeplabv2_r101_coco.pth', cfg_options=_base_.coco_options)
# Two of the four convolutions, which is what the COCO weights and the published results are of.
model = dict(decode_head=dict(num_summed=2))
train_cfg = dict(val_interval=500)
mutual = dict(
    members=[dict(coco_member, name='coco', seed=1), dict(name='imagenet', seed=2)],
    supervised=dict(max_iters=steps.supervised, lr=0.002),
    round=dict(max_iters=steps.dmt_round, lr=0.001),
)
