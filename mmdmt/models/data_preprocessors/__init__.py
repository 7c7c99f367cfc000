"""Data preprocessors: normalization, padding and views on the device."""

from .semi_data_preprocessor import SemiDataPreprocessor

__all__ = ['SemiDataPreprocessor']
