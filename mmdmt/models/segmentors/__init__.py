"""Semi-supervised segmentors: one file per method."""

from .cross_contrast import CrossContrast
from .cross_teacher import CrossTeacher
from .dual_teacher import DualTeacher
from .ensemble_segmentor import EnsembleSegmentor
from .mean_teacher import MeanTeacher
from .pseudo_label_segmentor import PseudoLabelSegmentor
from .semi_base import SemiSegmentor

__all__ = [
    'CrossContrast',
    'CrossTeacher',
    'DualTeacher',
    'EnsembleSegmentor',
    'MeanTeacher',
    'PseudoLabelSegmentor',
    'SemiSegmentor',
]
