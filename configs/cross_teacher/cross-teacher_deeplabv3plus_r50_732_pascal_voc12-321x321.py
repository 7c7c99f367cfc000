_base_ = './cross-teacher_deeplabv3plus_r50_92_pascal_voc12-321x321.py'

labeled_list = 'splits/732/labeled.txt'
unlabeled_list = 'splits/732/unlabeled.txt'
model = dict(semi_train_cfg=dict(contrast=dict(num_labeled=732)))
