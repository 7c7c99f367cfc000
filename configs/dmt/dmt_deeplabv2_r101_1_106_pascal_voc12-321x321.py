# DMT as published on VOC 2012 with 100 labels: both members from COCO weights, made different in
# round 0 by the two difference-maximized subsets of the labels (split_dataset.py
# --difference-maximized). The rounds use all labels. 100 labels are 1 in 105.82, the published
# divisor (--denominators 105.82), hence the folder.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

labeled_list = 'splits/1_105.82/fold_0/labeled.txt'
unlabeled_list = 'splits/1_105.82/fold_0/unlabeled.txt'
left_list = 'splits/1_105.82/fold_0/left.txt'
right_list = 'splits/1_105.82/fold_0/right.txt'
steps = _base_.published_steps.pascal_voc12['1_106']
mutual = dict(
    members=[
        dict(_base_.coco_member, name='left', seed=1, labeled_list=left_list),
        dict(_base_.coco_member, name='right', seed=2, labeled_list=right_list),
    ],
    supervised=dict(max_iters=steps.subset),
    round=dict(max_iters=steps.dmt_round),
)
