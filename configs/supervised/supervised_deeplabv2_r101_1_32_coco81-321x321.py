_base_ = './supervised_deeplabv2_r101_all_coco81-321x321.py'

labeled_list = 'splits/1_32/fold_0/labeled.txt'
