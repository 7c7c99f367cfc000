"""Samplers."""

from .multi_source_sampler import MultiSourceSampler
from .seeded_index import SeededIndex

__all__ = ['MultiSourceSampler', 'SeededIndex']
