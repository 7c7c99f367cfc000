# DST-CBC as published on Cityscapes with 100 labels.
_base_ = './dst-cbc_deeplabv2_r101_1_8_cityscapes-257x513.py'

run = _base_.published.cityscapes['1_30']
labeled_list, unlabeled_list = run.lists
mutual = run.dst_cbc
