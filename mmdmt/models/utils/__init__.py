"""Stateful helpers of the models."""

from .feature_tap import FeatureTap
from .memory_bank import ClassMemoryBank
from .stochastic_depth import StochasticDepth

__all__ = ['ClassMemoryBank', 'FeatureTap', 'StochasticDepth']
