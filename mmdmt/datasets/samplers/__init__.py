"""Samplers."""

from mmdmt.datasets.samplers.multi_source_sampler import MultiSourceSampler
from mmdmt.datasets.samplers.seeded_index import SeededIndex

__all__ = ['MultiSourceSampler', 'SeededIndex']
