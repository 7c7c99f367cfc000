"""Statistics of the bands of images and of classes, read file by file."""

from collections.abc import Iterable, Sequence
from typing import Dict, List, Optional

import numpy as np

#: Bins of the histograms that percentiles are read from.
BINS = 1 << 16


class BandStatistics:
    """Mean, deviation, extremes and percentiles of each band, over images that are read twice.

    :meth:`update` on every image, then :meth:`count` on every image. Nothing grows with their
    number. Sums are merged as by Chan et al. (1979), so that they are exact to float64.
    """

    def __init__(self) -> None:
        self.pixels = np.zeros(0)
        self.mean = self.squares = self.low = self.high = np.zeros(0)
        self.histogram = np.zeros((0, BINS), np.int64)
        self.whole = True

    def update(self, image: np.ndarray, valid: Optional[np.ndarray] = None) -> None:
        """Add an image (H, W, C); pixels where ``valid`` (H, W, C) is False do not count."""
        bands = _bands(image, valid)
        if not len(self.pixels):
            self.pixels, self.mean, self.squares = (np.zeros(len(bands)) for _ in range(3))
            self.low, self.high = np.full(len(bands), np.inf), np.full(len(bands), -np.inf)
        self._check(len(bands))
        self.whole &= image.dtype.kind in 'bui'
        for index, values in enumerate(bands):
            if not len(values):
                continue
            mean, before = values.mean(), self.pixels[index]
            total, gap = before + len(values), mean - self.mean[index]
            self.squares[index] += (
                values.var() * len(values) + gap**2 * before * len(values) / total
            )
            self.mean[index] += gap * len(values) / total
            self.pixels[index] = total
            self.low[index] = min(self.low[index], values.min())
            self.high[index] = max(self.high[index], values.max())

    def count(self, image: np.ndarray, valid: Optional[np.ndarray] = None) -> None:
        """Count the pixels of an image for the percentiles, after all were seen by ``update``."""
        bands = _bands(image, valid)
        self._check(len(bands))
        if not len(self.histogram):
            self.histogram = np.zeros((len(bands), BINS), np.int64)
        for index, values in enumerate(bands):
            places = np.rint((values - self.low[index]) / self._step(index)).astype(np.int64)
            self.histogram[index] += np.bincount(places, minlength=BINS)

    def percentiles(self, shares: Iterable[float]) -> List[List[float]]:
        """For each share in [0, 1], the value of each band that so many pixels do not exceed.

        It is exact for whole numbers that span at most 65,536 values, and else to the 65,535th part
        of the range.
        """
        totals = self.histogram.cumsum(1)
        return [
            [
                self.low[i]
                + self._step(i) * int(np.searchsorted(row, max(share * row[-1], 1), side='left'))
                for i, row in enumerate(totals)
            ]
            for share in shares
        ]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each band."""
        return np.sqrt(self.squares / np.maximum(self.pixels, 1))

    def _step(self, index: int) -> float:
        """Width of a bin: whole numbers have one each as long as they fit."""
        span = self.high[index] - self.low[index]
        return 1.0 if (self.whole and span < BINS) or span <= 0 else span / (BINS - 1)

    def _check(self, bands: int) -> None:
        if bands != len(self.pixels):
            raise ValueError(f'an image has {bands} bands, others have {len(self.pixels)}')


def _bands(image: np.ndarray, valid: Optional[np.ndarray]) -> List[np.ndarray]:
    valid = np.ones(image.shape, bool) if valid is None else valid
    if image.dtype.kind == 'f':
        valid = valid & np.isfinite(image)
    return [image[..., c][valid[..., c]].astype(np.float64) for c in range(image.shape[-1])]


def class_weights(pixels: Sequence[int]) -> List[float]:
    """Weights that balance classes: ``1 / sqrt(share)``, with mean 1; 0 for a class without pixels.

    The root keeps a rare class from outweighing all others.
    """
    counts = np.asarray(pixels, float)
    weights = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0)
    return (weights / weights[counts > 0].mean()).round(3).tolist() if counts.any() else []


def config_lines(statistics: BandStatistics, tail: float) -> Dict[str, str]:
    """What a config takes from the statistics; ``tail`` is the share cut off at each end."""
    low, high = statistics.percentiles([tail, 1 - tail])
    high = [max(top, bottom + 1e-6) for top, bottom in zip(high, low)]
    short = [[float(f'{value:.6g}') for value in values] for values in (low, high)]
    mean, std = (
        [float(f'{value:.6g}') for value in values] for values in (statistics.mean, statistics.std)
    )
    return dict(mean=repr(mean), std=repr(std), value_range=repr(tuple(short)))
