_base_ = './supervised_deeplabv3plus_r101_all_coco81-513x513.py'

labeled_list = 'splits/1_64/fold_0/labeled.txt'
