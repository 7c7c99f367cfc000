"""Datasets, samplers and transforms."""

from mmdmt.datasets.folder_dataset import FolderDataset
from mmdmt.datasets.samplers.multi_source_sampler import MultiSourceSampler
from mmdmt.datasets.samplers.seeded_index import SeededIndex
from mmdmt.datasets.semi_dataset import SemiDataset
from mmdmt.datasets.transforms.image_size import (
    LoadAnnotationsAtImageSize,
    LoadImageAtSize,
    PadBands,
    PadToCrop,
    RandomRescale,
    ScoreAtImageSize,
)
from mmdmt.datasets.transforms.load_bands import LoadBands
from mmdmt.datasets.transforms.load_masks import LoadMasks
from mmdmt.datasets.transforms.load_pseudo_labels import LoadPseudoLabels
from mmdmt.datasets.transforms.pack_semi_inputs import PackSemiInputs
from mmdmt.datasets.transforms.strong_pseudo_augment import StrongPseudoAugment
from mmdmt.datasets.unlabeled_dataset import UnlabeledDataset

__all__ = [
    'FolderDataset',
    'LoadAnnotationsAtImageSize',
    'LoadBands',
    'LoadImageAtSize',
    'LoadMasks',
    'LoadPseudoLabels',
    'MultiSourceSampler',
    'PackSemiInputs',
    'PadBands',
    'PadToCrop',
    'RandomRescale',
    'ScoreAtImageSize',
    'SeededIndex',
    'SemiDataset',
    'StrongPseudoAugment',
    'UnlabeledDataset',
]
