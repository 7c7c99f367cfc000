# DST-CBC as published on VOC 2012 with 2645 labels.
_base_ = './dst-cbc_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

labeled_list = 'splits/1_4/fold_0/labeled.txt'
unlabeled_list = 'splits/1_4/fold_0/unlabeled.txt'
steps = _base_.published_steps.pascal_voc12['1_4']
mutual = dict(
    supervised=dict(max_iters=steps.supervised),
    round=dict(max_iters=steps.dst_cbc_round),
)
