_base_ = './supervised_deeplabv3plus_r101_all_ade20k-512x512.py'

labeled_list = 'splits/1_4/fold_0/labeled.txt'
