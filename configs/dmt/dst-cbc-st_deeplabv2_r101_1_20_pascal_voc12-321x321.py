# DST-CBC's ablation "ST": all pseudo-labels at once, made once, and no weights. With
# `--cfg-options mutual.pseudo_loss.gamma=9` it is "DST".
_base_ = './dst-cbc_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

labeled_list = 'splits/1_20/fold_1/labeled.txt'
unlabeled_list = 'splits/1_20/fold_1/unlabeled.txt'
whole = dict(max_iters=5 * _base_.run.dst_cbc.round.max_iters)
mutual = dict(ratios=[1.0], round=whole, pseudo_loss=dict(gamma=0.0))
