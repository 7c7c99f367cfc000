_base_ = './supervised_deeplabv2_r101_all_pascal_voc12-321x321.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
