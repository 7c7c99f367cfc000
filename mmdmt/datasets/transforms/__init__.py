"""Transforms."""

from mmdmt.datasets.transforms.load_annotations_at_image_size import LoadAnnotationsAtImageSize
from mmdmt.datasets.transforms.load_image_at_size import LoadImageAtSize
from mmdmt.datasets.transforms.load_pseudo_labels import LoadPseudoLabels
from mmdmt.datasets.transforms.pack_semi_inputs import PackSemiInputs
from mmdmt.datasets.transforms.score_at_image_size import ScoreAtImageSize

__all__ = [
    'LoadAnnotationsAtImageSize',
    'LoadImageAtSize',
    'LoadPseudoLabels',
    'PackSemiInputs',
    'ScoreAtImageSize',
]
