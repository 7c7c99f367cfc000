# DMT as published on Cityscapes with 100 labels.
_base_ = './dmt_deeplabv2_r101_1_8_cityscapes-256x512.py'

labeled_list = 'splits/1_29.75/fold_0/labeled.txt'
unlabeled_list = 'splits/1_29.75/fold_0/unlabeled.txt'
steps = _base_.published_steps.cityscapes['1_30']
mutual = dict(
    supervised=dict(max_iters=steps.supervised),
    round=dict(max_iters=steps.dmt_round),
)
