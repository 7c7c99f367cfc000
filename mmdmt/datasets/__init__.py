"""Data sets, samplers and transforms."""

from .samplers import MultiSourceSampler, SeededIndex
from .semi_dataset import SemiDataset
from .transforms import (
    LoadAnnotationsAtImageSize,
    LoadImageAtSize,
    LoadPseudoLabels,
    PackSemiInputs,
    ScoreAtImageSize,
)
from .unlabeled_dataset import UnlabeledDataset

__all__ = [
    'LoadAnnotationsAtImageSize',
    'LoadImageAtSize',
    'LoadPseudoLabels',
    'MultiSourceSampler',
    'PackSemiInputs',
    'ScoreAtImageSize',
    'SeededIndex',
    'SemiDataset',
    'UnlabeledDataset',
]
