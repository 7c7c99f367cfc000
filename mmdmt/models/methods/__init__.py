"""Online methods, one file each."""

from .base import SemiSegmentor
from .cross_teacher import CrossTeacher
from .dual_teacher import DualTeacher
from .mean_teacher import MeanTeacher

__all__ = ['CrossTeacher', 'DualTeacher', 'MeanTeacher', 'SemiSegmentor']
