"""Online methods, one file each."""

from .base import SemiSegmentor
from .cross_teacher import CrossTeacher
from .fixmatch import FixMatch
from .mean_teacher import MeanTeacher

__all__ = ['CrossTeacher', 'FixMatch', 'MeanTeacher', 'SemiSegmentor']
