# DMT's ablation "online": one member learns what it predicts itself, in the same step, where it is
# confident. One round as long as five; the stored labels only name the images.
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = dict(
    _base_.single,
    ratios=[1.0],
    round=dict(max_iters=5 * _base_.run.dmt.round.max_iters),
    pseudo_loss=dict(_delete_=True, type='mmdmt.OnlinePseudoLoss', threshold=0.9),
)
