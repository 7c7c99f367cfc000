# DST-CBC's ablation "OST": all that the network predicts in the step itself is learned. With
# `--cfg-options mutual.pseudo_loss.threshold=0.9` it is "OST-T".
_base_ = './dst-cbc-st_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

mutual = dict(pseudo_loss=dict(_delete_=True, type='mmdmt.OnlinePseudoLoss', threshold=0.0))
