"""Runners."""

from .mutual_training_runner import MutualTrainingRunner
from .semi_runner import SemiRunner

__all__ = ['MutualTrainingRunner', 'SemiRunner']
