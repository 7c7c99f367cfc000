"""Stateful helpers of the models."""

from .memory_bank import ClassMemoryBank

__all__ = ['ClassMemoryBank']
