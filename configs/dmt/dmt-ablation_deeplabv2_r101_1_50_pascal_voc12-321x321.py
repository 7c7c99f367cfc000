# DMT in the setting of its published ablations, which inherit this: 211 labels of the third fold,
# all members from COCO weights. Two members differ by their labels of round 0; a single one
# (`single`) has all labels. docs/dmt.md has the table row by row.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

run = _base_.published.pascal_voc12.ablation
labeled_list, unlabeled_list = run.lists
single = dict(run.dmt, members=[dict(_base_.coco_member, name='coco', seed=1)])
members = [dict(_base_.coco_member, **member) for member in run.members]
mutual = dict(run.dmt_subsets, members=members)
