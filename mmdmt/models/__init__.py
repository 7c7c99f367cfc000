"""Segmentors, heads, losses, views and data preprocessors."""

from . import data_preprocessors, decode_heads, views

__all__ = ['data_preprocessors', 'decode_heads', 'views']
