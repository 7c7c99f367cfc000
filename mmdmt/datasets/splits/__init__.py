"""Drawing which images are labeled, and the lists of them."""

from .draws import difference_maximized_subsets, nested_splits

__all__ = ['difference_maximized_subsets', 'nested_splits']
