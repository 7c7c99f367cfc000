"""Losses: pure functions in :mod:`.functional`, thin registered modules around them."""

from .dynamic_mutual import DynamicMutualLoss
from .dynamic_self import DynamicSelfLoss
from .ohem import OhemCrossEntropy
from .online_pseudo import OnlinePseudoLoss

__all__ = ['DynamicMutualLoss', 'DynamicSelfLoss', 'OhemCrossEntropy', 'OnlinePseudoLoss']
