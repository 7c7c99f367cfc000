"""Losses: pure functions in :mod:`.functional`, thin registered modules around them."""

from .dynamic_mutual import DynamicMutualLoss
from .dynamic_self import DynamicSelfLoss
from .ohem import OhemCrossEntropy
from .online_pseudo import OnlinePseudoLoss
from .region import DiceLoss, FocalLoss

__all__ = [
    'DiceLoss',
    'DynamicMutualLoss',
    'DynamicSelfLoss',
    'FocalLoss',
    'OhemCrossEntropy',
    'OnlinePseudoLoss',
]
