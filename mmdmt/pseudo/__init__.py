"""Pseudo-labels: how they are made, selected and stored."""

from mmdmt.pseudo.base_labeler import BaseLabeler
from mmdmt.pseudo.codec import DamagedMapError, PseudoLabelError
from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.pseudo.reliability import ReliabilityRanker
from mmdmt.pseudo.store import PseudoLabelStore, StoreIncompleteError, StoreMismatchError
from mmdmt.pseudo.thresholds import ClassBalancedThreshold, apply_thresholds, ratio_rule_thresholds

__all__ = [
    'BaseLabeler',
    'ClassBalancedThreshold',
    'DamagedMapError',
    'PseudoLabelError',
    'PseudoLabelStore',
    'PseudoLabeler',
    'ReliabilityRanker',
    'StoreIncompleteError',
    'StoreMismatchError',
    'apply_thresholds',
    'ratio_rule_thresholds',
]
