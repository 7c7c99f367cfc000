_base_ = './dual-teacher_deeplabv3plus_r50_1_8_pascal_voc12-321x321.py'

labeled_list = 'splits/1_16/fold_0/labeled.txt'
unlabeled_list = 'splits/1_16/fold_0/unlabeled.txt'
