"""Temperature scaling: one number that makes the confidence of a network fit its accuracy."""

import math
import zlib
from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmdmt.checks import check_count
from mmdmt.evaluation.prediction_maps import prediction_maps
from mmdmt.registry import METRICS

#: Smallest and largest temperature that is looked for.
LIMITS = (0.05, 20.0)
_PRECISION = 1e-6  # relative
_CHUNK = 2**18  # pixels that are worked on at a time


def fit_temperature(
    logits: Sequence[Tensor], labels: Sequence[Tensor], weights: Optional[Sequence[float]] = None
) -> float:
    """The temperature T that minimizes the mean negative log-likelihood of softmax(logits / T).

    Guo et al., "On calibration of modern neural networks", ICML 2017. The likelihood is convex in
    1 / T, so Newton's method, kept inside the bracket of the minimum, finds it.

    Args:
        logits: (C, n) of each part, such as an image.
        labels: (n,) long, true classes.
        weights: Of a pixel of each part. Defaults to ones.

    Returns:
        In :data:`LIMITS`; a limit where the likelihood is best beyond it.

    Raises:
        ValueError: There is no pixel.
    """
    if not sum(len(label) for label in labels):
        raise ValueError('there is no pixel with a true class to fit a temperature to')
    weights = [1.0] * len(labels) if weights is None else weights
    low, high, inverse = 1 / LIMITS[1], 1 / LIMITS[0], 1.0
    for _ in range(100):
        slope, curvature = _derivatives(logits, labels, weights, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        before, inverse = inverse, step if low < step < high else math.sqrt(low * high)
        if abs(inverse / before - 1) < _PRECISION:
            break
    return 1 / inverse


def _derivatives(
    logits: Sequence[Tensor], labels: Sequence[Tensor], weights: Sequence[float], inverse: float
) -> Tuple[float, float]:
    """First and second derivative of the summed negative log-likelihood by 1 / T."""
    slope = curvature = 0.0
    for each, label, weight in zip(logits, labels, weights):
        for part, true in zip(each.split(_CHUNK, dim=1), label.split(_CHUNK)):
            part = part.double()
            prob = (part * inverse).softmax(dim=0)
            mean = (prob * part).sum(dim=0)
            slope += weight * float((mean - part.gather(0, true[None])[0]).sum())
            curvature += weight * float((prob * (part - mean).square()).sum())
    return slope, curvature


@METRICS.register_module()
class TemperatureMetric(BaseMetric):
    """Fits one temperature to a sample of the pixels that are evaluated.

    From every image as many pixels with a true class are drawn, by a generator seeded with its
    name; each counts for as many as it stands for. When the sample of a rank would outgrow its
    limit, every image's share is halved, so memory is bounded for any number of images and
    classes. It gives ``temperature``.

    Args:
        pixels (int): Pixels of an image, at most. Defaults to 16,384.
        limit (int): Logits that a rank keeps, at most. Defaults to 2**25, which are 128 MiB.
        seed (int): Of the drawing. Defaults to 0.
        ignore_index (int): Label of pixels that do not count. Defaults to 255.
        collect_device (str): Of mmengine's ``BaseMetric``.
        prefix (str, optional): Of mmengine's ``BaseMetric``.
    """

    def __init__(
        self,
        pixels: int = 2**14,
        limit: int = 2**25,
        seed: int = 0,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        check_count('pixels', pixels, 1)
        check_count('limit', limit, 1)
        self.pixels, self.limit, self.seed, self.ignore_index = pixels, limit, seed, ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Draw pixels of a batch; see :class:`.ReliabilityMetric`."""
        for sample in data_samples:
            maps = prediction_maps(sample, len(self.dataset_meta['classes']), self.ignore_index)
            label = maps.label.flatten()
            known = (label != self.ignore_index).nonzero()[:, 0]
            generator = torch.Generator().manual_seed(self.seed + zlib.crc32(maps.name.encode()))
            order = torch.randperm(len(known), generator=generator)[: self.pixels]
            chosen = known[order.to(known.device)]
            logits = maps.logits.flatten(1).index_select(1, chosen)
            self.results.append((logits.cpu(), label[chosen].cpu(), len(known)))
            self._shrink()

    def _shrink(self) -> None:
        while self.pixels > 1 and sum(each[0].numel() for each in self.results) > self.limit:
            self.pixels //= 2
            # The order is random, so its beginning is a sample, too. A copy frees the rest.
            self.results = [
                (logits[:, : self.pixels].clone(), label[: self.pixels], count)
                for logits, label, count in self.results
            ]

    def compute_metrics(self, results: List[tuple]) -> Dict[str, float]:
        """The temperature.

        Args:
            results (list[tuple]): Of each image logits (C, n), labels (n,), number of pixels.
        """
        logits, labels, counts = zip(*results) if results else ((), (), ())
        weights = [count / max(1, len(label)) for count, label in zip(counts, labels)]
        return dict(temperature=fit_temperature(logits, labels, weights))
