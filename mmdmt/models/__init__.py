"""Methods, views, losses, heads and the data preprocessor."""

from . import backbones, decode_heads, losses, methods, views
from .data_preprocessor import PaddingPreprocessor, SemiDataPreprocessor
from .ensemble_segmentor import EnsembleSegmentor
from .mean_tta_model import MeanTTAModel
from .pseudo_label_segmentor import PseudoLabelSegmentor
from .teachers import EMAUpdater

__all__ = [
    'EMAUpdater',
    'EnsembleSegmentor',
    'MeanTTAModel',
    'PaddingPreprocessor',
    'PseudoLabelSegmentor',
    'SemiDataPreprocessor',
    'backbones',
    'decode_heads',
    'losses',
    'methods',
    'views',
]
