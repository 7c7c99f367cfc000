# DMT's ablation "naive": members label for each other, and a pixel counts by the learning member's
# probability of the label alone, whether the two agree or not.
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = dict(pseudo_loss=dict(_delete_=True, type='mmdmt.DynamicSelfLoss', gamma=5.0))
