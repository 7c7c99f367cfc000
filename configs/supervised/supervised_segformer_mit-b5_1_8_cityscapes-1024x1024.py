_base_ = './supervised_segformer_mit-b5_all_cityscapes-1024x1024.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
