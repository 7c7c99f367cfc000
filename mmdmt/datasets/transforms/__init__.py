"""Transforms."""

from .load_pseudo_labels import LoadPseudoLabels
from .pack_semi_inputs import PackSemiInputs

__all__ = ['LoadPseudoLabels', 'PackSemiInputs']
