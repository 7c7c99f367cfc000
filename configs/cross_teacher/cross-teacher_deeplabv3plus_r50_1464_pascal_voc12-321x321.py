_base_ = './cross-teacher_deeplabv3plus_r50_92_pascal_voc12-321x321.py'

labeled_list = 'ImageSets/Segmentation/train.txt'
unlabeled_list = 'splits/1464/unlabeled.txt'
model = dict(semi_train_cfg=dict(contrast=dict(num_labeled=1464)))
