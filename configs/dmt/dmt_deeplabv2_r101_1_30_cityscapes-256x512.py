# DMT as published on Cityscapes with 100 labels.
_base_ = './dmt_deeplabv2_r101_1_8_cityscapes-256x512.py'

run = _base_.published.cityscapes['1_30']
labeled_list, unlabeled_list = run.lists
mutual = run.dmt
