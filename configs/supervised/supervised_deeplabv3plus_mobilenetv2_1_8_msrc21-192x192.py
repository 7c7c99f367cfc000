_base_ = './supervised_deeplabv3plus_mobilenetv2_all_msrc21-192x192.py'

labeled_list = 'splits/1_8/fold_0/labeled.txt'
