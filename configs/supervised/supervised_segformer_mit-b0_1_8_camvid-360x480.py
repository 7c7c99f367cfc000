_base_ = './supervised_segformer_mit-b0_all_camvid-360x480.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
