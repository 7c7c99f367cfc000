_base_ = './supervised_deeplabv3plus_r101_all_cityscapes-801x801.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
