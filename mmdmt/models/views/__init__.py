"""Views made on the device: strong augmentation, and mixing with masks and partners."""

from .adaptive_cutmix import AdaptiveCutMix, reliability
from .classmix import ClassMix
from .cutmix import CutMix
from .intensity import RandomIntensityAugment
from .masks import BOXES, box_mask, class_mask
from .mix import Mixing, MixView
from .partners import PARTNERS, mix_partners
from .shift import Shift
from .strong import STRONG_PRESETS, StrongAugment

__all__ = [
    'BOXES',
    'PARTNERS',
    'STRONG_PRESETS',
    'AdaptiveCutMix',
    'ClassMix',
    'CutMix',
    'MixView',
    'Mixing',
    'RandomIntensityAugment',
    'Shift',
    'StrongAugment',
    'box_mask',
    'class_mask',
    'mix_partners',
    'reliability',
]
