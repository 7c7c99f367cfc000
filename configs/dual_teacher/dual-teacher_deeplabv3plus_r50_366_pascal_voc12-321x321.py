_base_ = './dual-teacher_deeplabv3plus_r50_1_8_pascal_voc12-321x321.py'

labeled_list = 'splits/366/labeled.txt'
unlabeled_list = 'splits/366/unlabeled.txt'
