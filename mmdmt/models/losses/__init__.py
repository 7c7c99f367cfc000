"""Losses: pure functions in :mod:`.functional`, thin registered modules around them."""

from .dynamic_mutual import DynamicMutualLoss
from .dynamic_self import DynamicSelfLoss
from .functional import (
    confidence_share_loss,
    dynamic_mutual_loss,
    dynamic_self_loss,
    masked_consistency_loss,
    masked_cross_entropy,
    memory_contrast_loss,
    mixup_loss,
    mixup_weights,
    ohem_cross_entropy,
    online_pseudo_loss,
    peer_contrast_loss,
    sigmoid_ramp,
)
from .online_pseudo import OnlinePseudoLoss

__all__ = [
    'DynamicMutualLoss',
    'DynamicSelfLoss',
    'OnlinePseudoLoss',
    'confidence_share_loss',
    'dynamic_mutual_loss',
    'dynamic_self_loss',
    'masked_consistency_loss',
    'masked_cross_entropy',
    'memory_contrast_loss',
    'mixup_loss',
    'mixup_weights',
    'ohem_cross_entropy',
    'online_pseudo_loss',
    'peer_contrast_loss',
    'sigmoid_ramp',
]
