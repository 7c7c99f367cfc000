_base_ = './supervised_deeplabv2_r101_all_ade20k-512x512.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
