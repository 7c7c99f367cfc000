# Curriculum labeling: one member labels for itself, a growing share of all pixels whatever their
# class, and starts each round from its first weights. All 1800 steps count as its budget, though
# only the last 600 make the final network; longer rounds are `mutual.round.max_iters`.
_base_ = './dst-cbc_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(
    round=dict(from_scratch=True),
    pseudo_loss=dict(gamma=0.0),
    labeling=dict(balance='global'),
)
