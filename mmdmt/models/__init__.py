"""Segmentors, heads, losses, views and data preprocessors."""

from . import data_preprocessors, decode_heads, losses, segmentors, views
from .teachers import EMAUpdater

__all__ = ['EMAUpdater', 'data_preprocessors', 'decode_heads', 'losses', 'segmentors', 'views']
