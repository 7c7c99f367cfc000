# DMT as published on the 1464 labels of VOC 2012 itself, with the 9118 images of SBD unlabeled.
# Their list: sort ImageSets/Segmentation/train.txt ImageSets/Segmentation/trainaug.txt | uniq -u
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

labeled_list = 'ImageSets/Segmentation/train.txt'
unlabeled_list = 'splits/1464/unlabeled.txt'
steps = _base_.published_steps.pascal_voc12['1464']
mutual = dict(
    supervised=dict(max_iters=steps.supervised),
    round=dict(max_iters=steps.dmt_round),
)
