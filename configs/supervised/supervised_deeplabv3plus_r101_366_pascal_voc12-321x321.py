_base_ = './supervised_deeplabv3plus_r101_all_pascal_voc12-321x321.py'

labeled_list = 'splits/366/labeled.txt'
