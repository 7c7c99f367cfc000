"""Data of image classification; it needs mmpretrain: import ``mmdmt.classification``."""

from .identity import Identity
from .listed_dataset import ListedDataset
from .rand_augment import RandAugment

__all__ = ['Identity', 'ListedDataset', 'RandAugment']
