"""Datasets, samplers and transforms."""

from mmdmt.datasets.samplers import MultiSourceSampler, SeededIndex
from mmdmt.datasets.semi_dataset import SemiDataset
from mmdmt.datasets.transforms import (
    LoadAnnotationsAtImageSize,
    LoadImageAtSize,
    LoadPseudoLabels,
    PackSemiInputs,
    ScoreAtImageSize,
)
from mmdmt.datasets.unlabeled_dataset import UnlabeledDataset

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
