# Curriculum labeling: one member labels for itself, a growing share of all pixels whatever their
# class, and starts each round from its first weights. Not among the published ablations, but in
# their setting.
_base_ = './dmt-ablation_deeplabv2_r101_1_50_pascal_voc12-321x321.py'

mutual = dict(
    _base_.single,
    round=dict(_base_.run.dmt.round, lr=0.002, from_scratch=True),
    pseudo_loss=dict(gamma1=0.0, gamma2=0.0),
    labeling=dict(balance='global'),
)
