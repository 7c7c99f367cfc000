"""Data of image classification; it needs mmpretrain: import ``mmdmt.classification``."""

from .listed_dataset import ListedDataset
from .rand_augment import RandAugment

__all__ = ['ListedDataset', 'RandAugment']
