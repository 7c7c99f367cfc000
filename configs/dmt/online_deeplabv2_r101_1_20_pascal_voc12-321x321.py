# DMT's ablation "online": one member learns what it predicts itself, in the same step, where it is
# confident. One round as long as five; the stored labels only name the images.
_base_ = './dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'

mutual = dict(
    members=[dict(_base_.coco_member, name='coco', seed=1)],
    ratios=[1.0],
    round=dict(max_iters=5 * _base_.steps.dmt_round),
    pseudo_loss=dict(_delete_=True, type='mmdmt.OnlinePseudoLoss', threshold=0.9),
)
