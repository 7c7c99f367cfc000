# DST-CBC as published on VOC 2012 with 2645 labels.
_base_ = './dst-cbc_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

run = _base_.published.pascal_voc12['1_4']
labeled_list, unlabeled_list = run.lists
mutual = run.dst_cbc
