"""Views made on the device: strong augmentation, CutMix and ClassMix."""

from .classmix import ClassMix
from .cutmix import CutMix
from .mix import (
    Mixed,
    classmix,
    classmix_mask,
    cutmix,
    cutmix_boxes,
    cutmix_mask,
    mix,
    mix_partners,
)
from .strong import STRONG_PRESETS, StrongAugment

__all__ = [
    'STRONG_PRESETS',
    'ClassMix',
    'CutMix',
    'Mixed',
    'StrongAugment',
    'classmix',
    'classmix_mask',
    'cutmix',
    'cutmix_boxes',
    'cutmix_mask',
    'mix',
    'mix_partners',
]
