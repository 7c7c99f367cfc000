_base_ = './dual-teacher_deeplabv3plus_r50_1_8_cityscapes-801x801.py'

labeled_list = 'splits/1_2/fold_0/labeled.txt'
unlabeled_list = 'splits/1_2/fold_0/unlabeled.txt'
