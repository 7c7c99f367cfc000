"""Pseudo-labels: class-balanced thresholds and the store on disk."""

from mmdmt.pseudo.codec import DamagedMapError, PseudoLabelError
from mmdmt.pseudo.store import (
    PseudoLabelStats,
    PseudoLabelStore,
    StoreIncompleteError,
    StoreMismatchError,
)
from mmdmt.pseudo.thresholds import (
    ClassBalancedThreshold,
    apply_threshold_ratio,
    apply_thresholds,
    ratio_rule_thresholds,
)

__all__ = [
    'ClassBalancedThreshold',
    'DamagedMapError',
    'PseudoLabelError',
    'PseudoLabelStats',
    'PseudoLabelStore',
    'StoreIncompleteError',
    'StoreMismatchError',
    'apply_threshold_ratio',
    'apply_thresholds',
    'ratio_rule_thresholds',
]
