_base_ = './supervised_deeplabv3plus_r50_all_pascal_voc12-321x321.py'

labeled_list = 'splits/1_4/fold_0/labeled.txt'
