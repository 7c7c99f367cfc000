"""Data sets, samplers and transforms."""

from .samplers import MultiSourceSampler, SeededIndex
from .semi_dataset import SemiDataset
from .transforms import LoadPseudoLabels, PackSemiInputs
from .unlabeled_dataset import UnlabeledDataset

__all__ = [
    'LoadPseudoLabels',
    'MultiSourceSampler',
    'PackSemiInputs',
    'SeededIndex',
    'SemiDataset',
    'UnlabeledDataset',
]
