# Curriculum labeling: one member labels for itself, a growing share of all pixels whatever their
# class, and starts each round from its first weights.
_base_ = './cbst.py'

mutual = dict(round=dict(from_scratch=True), labeling=dict(balance='global'))
