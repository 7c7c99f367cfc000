_base_ = './supervised_deeplabv3plus_r50_all_coco81-513x513.py'

labeled_list = 'splits/1_32/fold_0/labeled.txt'
