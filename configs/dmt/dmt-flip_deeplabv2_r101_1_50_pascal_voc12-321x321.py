# DMT's ablation "label flip": where the learning member is more confident, it learns its
# own label.
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = dict(pseudo_loss=dict(conflict='flip'))
