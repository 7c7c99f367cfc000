"""Stateful helpers of the models."""

from .memory_bank import ClassMemoryBank
from .stochastic_depth import StochasticDepth

__all__ = ['ClassMemoryBank', 'StochasticDepth']
