"""Segmentors, backbones, heads, losses, views and data preprocessors."""

from . import backbones, data_preprocessors, decode_heads, losses, segmentors, views
from .teachers import EMAUpdater

__all__ = [
    'EMAUpdater',
    'backbones',
    'data_preprocessors',
    'decode_heads',
    'losses',
    'segmentors',
    'views',
]
