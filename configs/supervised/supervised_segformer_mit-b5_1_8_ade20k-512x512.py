_base_ = './supervised_segformer_mit-b5_all_ade20k-512x512.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
