# The published baselines of DMT on VOC 2012: round 0 of a member from COCO weights, and no more. The
# labels of a row and their steps are options: docs/dmt.md. No unlabeled list is read.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

mutual = dict(members=[dict(_base_.coco_member, name='coco', seed=1)], ratios=[])
