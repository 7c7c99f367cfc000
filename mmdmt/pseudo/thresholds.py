"""Class-balanced selection of pseudo-labels."""

from typing import List, Optional, Tuple, TypeVar, Union

import numpy as np
import torch
from torch import Tensor

from mmdmt.pseudo.quantization import compand, expand

#: Threshold of a class with too few pixels to have a rank: below any softmax maximum.
KEEP_ALL = 1e-5

#: Threshold of every class under the rule 'threshold_ratio' when nothing is left out.
RATIO_KEEP_ALL = 1e-4

#: How a label is chosen: the most probable class, or the one furthest above its threshold.
RULES = ('argmax', 'threshold_ratio')

#: Whether a share of the pixels is kept of every class, or of all classes together.
BALANCES = ('class', 'global')

Map = Union[Tensor, np.ndarray]
MapT = TypeVar('MapT', Tensor, np.ndarray)


class ClassBalancedThreshold:
    """Confidence, per class, that the most certain share of its pixels reaches.

    Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced
    Self-Training" (CBST), ECCV 2018, as in DMT (Feng et al., Pattern Recognition 2022): of the
    pixels that a class was predicted for, in all images together, the threshold is the value at
    rank ``int(ratio * n)`` from the top, counted from 0. A class without a rank of its own
    (``ratio * n < 1``) keeps everything it has, so that a rare class does not vanish.

    Feed every image to one object, or each rank's images to its own and :meth:`merge` them; the
    result does not depend on the order. The objects can be pickled.

    Args:
        num_classes: Number of classes C.
        pixel_stride: Every n-th pixel of the flattened map is used; 16 as published.
        bins: None keeps every sampled confidence (5 bytes each) and gives exact ranks. A number
            keeps a histogram of constant size; the threshold is then within ``1 / bins`` of the
            exact one, and much closer near 1, where confidences crowd.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self, num_classes: int, pixel_stride: int = 16, bins: Optional[int] = None
    ) -> None:
        if num_classes < 1 or pixel_stride < 1 or (bins is not None and bins < 1):
            raise ValueError(
                '`num_classes`, `pixel_stride` and `bins` must be positive, got '
                f'{num_classes}, {pixel_stride} and {bins}'
            )
        self.num_classes = num_classes
        self.pixel_stride = pixel_stride
        self.bins = bins
        make = _ExactRanks if bins is None else _Histogram
        self._samples = make(num_classes, bins)

    def update(self, label: Map, confidence: Map) -> None:
        """Add the predictions of one image.

        Args:
            label: (H, W) predicted classes of any integer type. Others than 0..C-1 are left out.
            confidence: (H, W) their softmax values.

        Raises:
            ValueError: If the shapes differ or a confidence is not finite.
        """
        if tuple(label.shape) != tuple(confidence.shape):
            raise ValueError(
                f'`label` and `confidence` must have the same shape, got {tuple(label.shape)} '
                f'and {tuple(confidence.shape)}'
            )
        label, confidence = (self._sample(values) for values in (label, confidence))
        known = (label >= 0) & (label < self.num_classes)
        label, confidence = label[known], confidence[known].astype(np.float32)
        if not np.isfinite(confidence).all():
            raise ValueError(
                '`confidence` has NaN or infinite values: the network that labels has diverged'
            )
        self._samples.add(label, confidence)

    def merge(self, other: 'ClassBalancedThreshold') -> None:
        """Add what another object has seen.

        Raises:
            ValueError: If the other object was made with other arguments.
        """
        for key in ('num_classes', 'pixel_stride', 'bins'):
            if getattr(self, key) != getattr(other, key):
                raise ValueError(
                    f'cannot merge thresholds with {key}={getattr(self, key)} and '
                    f'{key}={getattr(other, key)}'
                )
        self._samples.merge(other._samples)

    def compute(self, ratio: float, balance: str = 'class') -> Tensor:
        """Thresholds that keep ``ratio`` of the pixels.

        Args:
            ratio: In (0, 1]. At 1 the threshold is the smallest **sampled** confidence, as
                published: with ``pixel_stride > 1`` a pixel that was not sampled can lie below.
            balance: ``'class'`` keeps the share of each class. ``'global'`` keeps it of all
                pixels together, so that all classes have one threshold (curriculum labeling,
                Cascante-Bonilla et al., AAAI 2021).

        Returns:
            (C,) float32 on the CPU, for :func:`apply_thresholds`.

        Raises:
            ValueError: If ``ratio`` is outside (0, 1] or ``balance`` is unknown.
        """
        if not 0 < ratio <= 1 + 1e-6:  # 5 * 0.2 may be a little above 1
            raise ValueError(f'`ratio` must be in (0, 1], got {ratio}')
        if balance not in BALANCES:
            raise ValueError(f'`balance` must be one of {BALANCES}, got {balance!r}')
        if balance == 'global':
            (value,) = _ranked(self._samples.pooled(), ratio)
            return torch.full((self.num_classes,), value)
        return torch.tensor(_ranked(self._samples, ratio), dtype=torch.float32)

    def _sample(self, values: Map) -> np.ndarray:
        """Every n-th value, on the host."""
        values = values.reshape(-1)[:: self.pixel_stride]
        if isinstance(values, Tensor):
            values = values.float() if values.is_floating_point() else values  # numpy has no bf16
            values = values.detach().cpu().numpy()
        return values


def apply_thresholds(
    label: MapT, confidence: MapT, thresholds: Map, ignore_index: int = 255
) -> MapT:
    """Set labels whose confidence is below the threshold of their class to ``ignore_index``.

    Args:
        label: Predicted classes, any shape and integer type. Values outside 0..C-1 are set to
            ``ignore_index`` too.
        confidence: Their confidence, of the same shape; one exactly at the threshold is kept.
        thresholds: (C,).
        ignore_index: Label of pixels that are not learned.

    Returns:
        A new label map of the kind, type and shape of ``label``.
    """
    if isinstance(label, Tensor):
        thresholds = torch.as_tensor(thresholds, device=label.device)
        known = (label >= 0) & (label < len(thresholds))
        kept = known & (confidence >= thresholds[label.long().masked_fill(~known, 0)])
        return label.masked_fill(~kept, ignore_index)
    thresholds = np.asarray(thresholds)
    if label.dtype == np.uint8:  # the way of every training sample: a table of all values
        limits = np.full(256, np.inf, thresholds.dtype)
        limits[: len(thresholds)] = thresholds
        kept = confidence >= limits[label]
    else:
        known = (label >= 0) & (label < len(thresholds))
        kept = known & (confidence >= thresholds[np.where(known, label, 0)])
    return np.where(kept, label, np.asarray(ignore_index, label.dtype))


def _ranked(samples: 'Samples', ratio: float) -> List[float]:
    """Confidence that ``ratio`` of the pixels of each class reach."""
    thresholds = []
    for index, count in enumerate(samples.counts()):
        if count > 0 and (ratio >= 1 or count * ratio >= 1):
            rank = min(int(count * ratio), count - 1)
            thresholds.append(float(samples.from_top(index, rank)))
        else:
            thresholds.append(KEEP_ALL)
    return thresholds


def ratio_rule_thresholds(thresholds: Tensor, ratio: float) -> Tensor:
    """Thresholds fit for dividing by them, from those of :class:`ClassBalancedThreshold`.

    DST-CBC's code divides by 1e-4 throughout where nothing is left out (``ratio >= 1``), which
    makes the choice a plain argmax. A class without a rank of its own gets 1 here: divided by
    ``KEEP_ALL`` it would win every pixel.

    Args:
        thresholds: (C,).
        ratio: The ratio they were computed with.

    Returns:
        (C,) float32.
    """
    if ratio >= 1:
        return torch.full_like(thresholds, RATIO_KEEP_ALL)
    return thresholds.masked_fill(thresholds <= KEEP_ALL, 1.0)


def threshold_ratio_labels(prob: Tensor, thresholds: Map) -> Tuple[Tensor, Tensor]:
    """The class that is furthest above its threshold, and its probability, before any selection.

    Args:
        prob: Class probabilities, (C, *).
        thresholds: (C,), positive.

    Returns:
        Label (*), long, ``argmax_c p_c / k_c``, and the probability of that class (*), which
        need not be the largest.
    """
    limits = torch.as_tensor(thresholds).to(prob).reshape(-1, *[1] * (prob.ndim - 1))
    label = (prob / limits).argmax(dim=0)
    return label, prob.gather(0, label[None])[0]


def apply_threshold_ratio(
    prob: Tensor, thresholds: Map, ignore_index: int = 255
) -> Tuple[Tensor, Tensor]:
    r"""The selection rule of CRST and DST-CBC: normalize by the thresholds, then select.

    Zou et al., "Confidence Regularized Self-Training", ICCV 2019; Feng et al., arXiv 2004.08514v1.

    .. math::
        \hat y = \arg\max_c p_c / k_c, \quad \text{ignored where } \max_c p_c / k_c < 1

    A class with a low threshold, which is a class the network is unsure of, takes pixels from
    classes that are more probable. :func:`apply_thresholds` (DMT) never changes the class.

    Args:
        prob: Class probabilities, (C, \*).
        thresholds: (C,), positive; see :func:`ratio_rule_thresholds`.
        ignore_index: Label of pixels that are not learned.

    Returns:
        Label (\*), long, and the probability of the chosen class (\*).

    Raises:
        ValueError: If there is not one positive threshold per class.
    """
    values = torch.as_tensor(thresholds)
    if values.shape != prob.shape[:1] or not bool((values > 0).all()):
        raise ValueError(
            f'`thresholds` must be {prob.shape[0]} positive numbers, one per class of `prob`, got '
            f'{values.tolist()}'
        )
    label, confidence = threshold_ratio_labels(prob, values)
    # p_c / k_c >= 1 as p_c >= k_c, which is how a stored map is read too.
    return apply_thresholds(label, confidence, values.to(prob), ignore_index), confidence


class _ExactRanks:
    """All confidences, per class."""

    def __init__(self, num_classes: int, bins: None) -> None:
        self.values: List[List[np.ndarray]] = [[] for _ in range(num_classes)]

    def add(self, label: np.ndarray, confidence: np.ndarray) -> None:
        for index in np.unique(label):
            self.values[index].append(confidence[label == index])

    def merge(self, other: '_ExactRanks') -> None:
        for own, others in zip(self.values, other.values):
            own.extend(others)

    def pooled(self) -> '_ExactRanks':
        """All classes as one."""
        pool = _ExactRanks(1, None)
        pool.values[0] = [part for values in self.values for part in values]
        return pool

    def counts(self) -> List[int]:
        return [sum(map(len, values)) for values in self.values]

    def from_top(self, index: int, rank: int) -> float:
        values = np.concatenate(self.values[index])
        position = len(values) - 1 - rank
        return np.partition(values, position)[position]


class _Histogram:
    """Counts per class and confidence, in steps that are equal on the scale of ``compand``.

    That scale gives half its range to equal steps of the confidence, so twice as many steps as
    ``bins`` are needed for a resolution of ``1 / bins`` everywhere.
    """

    def __init__(self, num_classes: int, bins: int) -> None:
        self.table = np.zeros((num_classes, 2 * bins), np.int64)

    def add(self, label: np.ndarray, confidence: np.ndarray) -> None:
        steps = self.table.shape[1]
        step = np.minimum((compand(confidence) * steps).astype(np.int64), steps - 1)
        flat = np.bincount(label.astype(np.int64) * steps + step, minlength=self.table.size)
        self.table += flat.reshape(self.table.shape)

    def merge(self, other: '_Histogram') -> None:
        self.table += other.table

    def pooled(self) -> '_Histogram':
        """All classes as one."""
        pool = _Histogram(1, self.table.shape[1] // 2)
        pool.table = self.table.sum(axis=0, keepdims=True)
        return pool

    def counts(self) -> List[int]:
        return self.table.sum(axis=1).tolist()

    def from_top(self, index: int, rank: int) -> float:
        """Value at a rank, as if the values of a step were spread evenly over it."""
        counts = self.table[index]
        reached = np.cumsum(counts[::-1])[::-1]  # values in this step or above
        step = int(np.flatnonzero(reached > rank)[-1])
        low, high = expand(np.array([step, step + 1]) / len(counts))
        is_last = rank == reached[0] - 1
        share = 1 if is_last else (rank - (reached[step] - counts[step]) + 0.5) / counts[step]
        return high - share * (high - low)


Samples = Union[_ExactRanks, _Histogram]
