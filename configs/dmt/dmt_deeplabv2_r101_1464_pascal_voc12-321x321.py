# DMT as published on the 1464 labels of VOC 2012 itself, with the 9118 images of SBD unlabeled.
# Their list: sort ImageSets/Segmentation/train.txt ImageSets/Segmentation/trainaug.txt | uniq -u
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

run = _base_.published.pascal_voc12['1464']
labeled_list, unlabeled_list = run.lists
mutual = run.dmt
