"""Online methods, one file each."""

from .base import SemiSegmentor
from .cross_teacher import CrossTeacher
from .dual_teacher import DualTeacher
from .fixmatch import FixMatch
from .mean_teacher import MeanTeacher
from .released_dual_teacher import ReleasedDualTeacher

__all__ = [
    'CrossTeacher',
    'DualTeacher',
    'FixMatch',
    'MeanTeacher',
    'ReleasedDualTeacher',
    'SemiSegmentor',
]
