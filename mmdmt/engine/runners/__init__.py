"""Runners."""

from mmdmt.engine.runners.mutual_training_runner import MutualTrainingRunner
from mmdmt.engine.runners.semi_runner import SemiRunner

__all__ = ['MutualTrainingRunner', 'SemiRunner']
