"""Transforms."""

from .load_annotations_at_image_size import LoadAnnotationsAtImageSize
from .load_image_at_size import LoadImageAtSize
from .load_pseudo_labels import LoadPseudoLabels
from .pack_semi_inputs import PackSemiInputs
from .score_at_image_size import ScoreAtImageSize

__all__ = [
    'LoadAnnotationsAtImageSize',
    'LoadImageAtSize',
    'LoadPseudoLabels',
    'PackSemiInputs',
    'ScoreAtImageSize',
]
