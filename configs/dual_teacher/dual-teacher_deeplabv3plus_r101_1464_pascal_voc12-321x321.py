_base_ = './dual-teacher_deeplabv3plus_r101_1_8_pascal_voc12-321x321.py'

labeled_list = 'ImageSets/Segmentation/train.txt'
unlabeled_list = 'splits/1464/unlabeled.txt'
