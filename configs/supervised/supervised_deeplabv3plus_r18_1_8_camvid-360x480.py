_base_ = './supervised_deeplabv3plus_r18_all_camvid-360x480.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
