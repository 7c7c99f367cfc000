# DMT as published on VOC 2012 with 211 labels: both members from COCO weights, made different in
# round 0 by the two difference-maximized subsets of the labels (split_dataset.py
# --difference-maximized). The rounds use all labels.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

run = _base_.published.pascal_voc12['1_50']
labeled_list, unlabeled_list = run.lists
members = [dict(_base_.coco_member, **member) for member in run.members]
mutual = dict(run.dmt_subsets, members=members)
