"""Online methods, one file each."""

from .augseg import AugSeg
from .base import SemiSegmentor
from .cps import CPS
from .cross_teacher import CrossTeacher
from .cutmix_seg import CutMixSeg
from .dual_teacher import DualTeacher
from .fixmatch import FixMatch
from .mean_teacher import MeanTeacher
from .released_dual_teacher import ReleasedDualTeacher
from .u2pl import U2PL
from .unimatch import UniMatch
from .unimatch_v2 import UniMatchV2
from .weak_to_strong import WeakToStrong

__all__ = [
    'CPS',
    'U2PL',
    'AugSeg',
    'CrossTeacher',
    'CutMixSeg',
    'DualTeacher',
    'FixMatch',
    'MeanTeacher',
    'ReleasedDualTeacher',
    'SemiSegmentor',
    'UniMatch',
    'UniMatchV2',
    'WeakToStrong',
]
