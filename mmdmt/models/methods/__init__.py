"""Online methods, one file each."""

from .base import SemiSegmentor
from .dual_teacher import DualTeacher
from .fixmatch import FixMatch
from .mean_teacher import MeanTeacher
from .released_dual_teacher import ReleasedDualTeacher

__all__ = ['DualTeacher', 'FixMatch', 'MeanTeacher', 'ReleasedDualTeacher', 'SemiSegmentor']
