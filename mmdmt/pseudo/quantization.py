"""A scale for confidences that is fine where confidences are.

A trained network puts most pixels above 0.99, so equal steps of the probability would store half
an image as one value, and a threshold could not split it. Equal steps of ``-log(1 - c)`` resolve
that tail but are coarse below 0.7. The scale here is the mean of both.
"""

from functools import cache
from typing import Union

import numpy as np

# In float32 a difference 1 - c < 2^-24 is 0.
_LARGEST_BELOW_ONE = 1 - 2.0**-24
_LOG_RANGE = 24 * np.log(2)


def compand(confidence: np.ndarray) -> np.ndarray:
    """Positions in [0, 1] of confidences in [0, 1], increasing; those of 0 and 1 are 0 and 1."""
    confidence = np.clip(confidence, 0, _LARGEST_BELOW_ONE).astype(np.float32)
    doubt = np.log1p(-confidence)
    position = 0.5 * confidence - np.float32(0.5 / _LOG_RANGE) * doubt
    return np.minimum(position, 1)


def expand(position: Union[np.ndarray, float]) -> np.ndarray:
    """Confidences (float32) at positions of the scale, the inverse of :func:`compand`."""
    position = np.asarray(position, np.float64)
    low, high = np.zeros_like(position), np.full_like(position, _LARGEST_BELOW_ONE)
    for _ in range(60):  # there is no closed form; tables are small
        middle = (low + high) / 2
        below = 0.5 * middle - 0.5 / _LOG_RANGE * np.log1p(-middle) < position
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(position >= 1, 1, (low + high) / 2).astype(np.float32)


def quantize(confidence: np.ndarray, levels: int) -> np.ndarray:
    """Nearest of ``levels`` (2 to 65536) steps that are equal on the scale: 0..levels-1, uint16."""
    return np.rint(compand(confidence) * (levels - 1)).astype(np.uint16)


@cache
def expansion_table(levels: int) -> np.ndarray:
    """Confidence of each of ``levels`` steps: (levels,) float32, read-only."""
    table = expand(np.arange(levels) / (levels - 1))
    table[0] = 0
    table.flags.writeable = False
    return table
