# The published baselines of DMT on Cityscapes at half size: round 0 of a member from COCO weights, and
# no more. The labels of a row and their steps are options: docs/dmt.md. No unlabeled list is read.
_base_ = './dmt_deeplabv2_r101_1_8_cityscapes-256x512.py'

mutual = dict(members=[dict(_base_.coco_member, name='coco', seed=1)], ratios=[])
