"""Views made on the device: strong augmentation, CutMix and ClassMix."""

from mmdmt.models.views.classmix import ClassMix
from mmdmt.models.views.cutmix import CutMix
from mmdmt.models.views.mix import (
    Mixed,
    classmix,
    classmix_mask,
    cutmix,
    cutmix_boxes,
    cutmix_mask,
    mix,
    mix_partners,
)
from mmdmt.models.views.strong import STRONG_PRESETS, StrongAugment

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
