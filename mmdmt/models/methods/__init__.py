"""Online methods, one file each."""

from .base import SemiSegmentor
from .fixmatch import FixMatch
from .mean_teacher import MeanTeacher

__all__ = ['FixMatch', 'MeanTeacher', 'SemiSegmentor']
