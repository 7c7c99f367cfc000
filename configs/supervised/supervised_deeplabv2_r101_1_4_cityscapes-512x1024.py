_base_ = './supervised_deeplabv2_r101_all_cityscapes-512x1024.py'

labeled_list = 'splits/1_4/fold_0/labeled.txt'
