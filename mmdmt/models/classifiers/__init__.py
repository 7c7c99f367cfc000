"""Classifiers; they need mmpretrain: import ``mmdmt.classification``."""

from .ema_model import EMAModel
from .mutual_classifier import MutualClassifier

__all__ = ['EMAModel', 'MutualClassifier']
