"""Semi-supervised segmentors: one file per method."""

from .dual_teacher import DualTeacher
from .mean_teacher import MeanTeacher
from .pseudo_label_segmentor import PseudoLabelSegmentor
from .semi_base import SemiSegmentor

__all__ = ['DualTeacher', 'MeanTeacher', 'PseudoLabelSegmentor', 'SemiSegmentor']
