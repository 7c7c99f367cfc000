_base_ = './supervised_deeplabv3plus_r50_all_cityscapes-801x801.py'

labeled_list = 'splits/1_29.75/fold_0/labeled.txt'
