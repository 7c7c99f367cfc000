"""Contrast of pixel features: memory banks, anchors, the tap that reads features, projections."""

from .cross_contrast import CrossContrast
from .feature_tap import FeatureTap
from .memory_bank import ClassMemoryBank
from .unreliable_contrast import UnreliableContrast

__all__ = ['ClassMemoryBank', 'CrossContrast', 'FeatureTap', 'UnreliableContrast']
