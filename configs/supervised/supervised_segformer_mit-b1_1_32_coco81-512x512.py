_base_ = './supervised_segformer_mit-b1_all_coco81-512x512.py'

labeled_list = 'splits/1_32/fold_0/labeled.txt'
