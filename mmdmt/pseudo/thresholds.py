"""Class-balanced selection of pseudo-labels."""

from typing import Any, Dict, List, Optional, Tuple, TypeVar, Union

import numpy as np
import torch
from torch import Tensor

from mmdmt.checks import check_choice
from mmdmt.pseudo.quantization import compand, expansion_table

#: Threshold of a class with too few pixels to have a rank: below any softmax maximum.
KEEP_ALL = 1e-5

#: Threshold of every class under the rule 'threshold_ratio' when nothing is left out.
RATIO_KEEP_ALL = 1e-4

#: How a label is chosen: the most probable class, or the one furthest above its threshold.
RULES = ('argmax', 'threshold_ratio')

#: Whether a share of the pixels is kept of every class, or of all classes together.
BALANCES = ('class', 'global')

# Steps of the companded scale for each of `bins`; confidences kept before they are counted.
_STEPS_PER_BIN = 8
_MAX_RECENT = 1 << 22

Map = Union[Tensor, np.ndarray]
MapT = TypeVar('MapT', Tensor, np.ndarray)
Table = Tuple[np.ndarray, np.ndarray]


class ClassBalancedThreshold:
    """Confidence, per class, that the most confident share of its pixels reaches.

    Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced
    Self-Training" (CBST), ECCV 2018, as in DMT (Feng et al., Pattern Recognition 2022): of the
    pixels that a class was predicted for, in all images together, the threshold is the value at
    rank ``int(ratio * n)`` from the top, counted from 0. A class without a rank of its own
    (``ratio * n < 1``) keeps everything it has, so that a rare class does not vanish.

    Feed every image to one object, or each rank's images to its own and :meth:`merge` them; the
    result does not depend on the order. What is kept, and pickled, is how often each value
    occurred: little where confidences are quantized, as stored ones are.

    Args:
        num_classes: Number of classes C.
        pixel_stride: Every n-th pixel of the flattened map is used; 16 as published.
        bins: None distinguishes all values and gives exact ranks. A number rounds them down to a
            histogram of bounded size; the threshold is then less than ``1 / bins`` below the
            exact one, and much closer near 1, where confidences crowd.
    """

    def __init__(
        self, num_classes: int, pixel_stride: int = 16, bins: Optional[int] = None
    ) -> None:
        if min(num_classes, pixel_stride, 1 if bins is None else bins) < 1:
            raise ValueError(
                '`num_classes`, `pixel_stride` and `bins` must be positive, got '
                f'{num_classes}, {pixel_stride} and {bins}'
            )
        self.num_classes = num_classes
        self.pixel_stride = pixel_stride
        self.bins = bins
        self._tables: List[Table] = [(np.zeros(0, np.float32), np.zeros(0, np.int64))] * num_classes
        self._recent: List[List[np.ndarray]] = [[] for _ in range(num_classes)]
        self._num_recent = 0

    def update(self, label: Map, confidence: Map) -> None:
        """Add the predictions of one image: classes (H, W) and their confidence (H, W).

        Labels other than 0..C-1 are left out.

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
        label, confidence = label[known].astype(np.int64), confidence[known].astype(np.float32)
        if not np.isfinite(confidence).all():
            raise ValueError(
                '`confidence` has NaN or infinite values: the network that labels has diverged'
            )
        confidence = confidence if self.bins is None else self._rounded(confidence)
        for index in np.unique(label):
            self._recent[index].append(confidence[label == index])
        self._num_recent += len(label)
        if self._num_recent > _MAX_RECENT:
            self._count_recent()

    def merge(self, other: 'ClassBalancedThreshold') -> None:
        """Add what another object has seen, which was made with the same arguments."""
        for key in ('num_classes', 'pixel_stride', 'bins'):
            if getattr(self, key) != getattr(other, key):
                raise ValueError(
                    f'cannot merge thresholds with {key}={getattr(self, key)} and '
                    f'{key}={getattr(other, key)}'
                )
        pairs = zip(self._count_recent(), other._count_recent())
        self._tables = [_joined(*pair) for pair in pairs]

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
        """
        if not 0 < ratio <= 1 + 1e-6:  # 5 * 0.2 may be a little above 1
            raise ValueError(f'`ratio` must be in (0, 1], got {ratio}')
        check_choice('balance', balance, BALANCES)
        tables = self._count_recent()
        if balance == 'global':
            tables = [_joined(*tables)] * self.num_classes
        return torch.tensor([_ranked(table, ratio) for table in tables], dtype=torch.float32)

    def _sample(self, values: Map) -> np.ndarray:
        """Every n-th value, on the host."""
        values = values.reshape(-1)[:: self.pixel_stride]
        if isinstance(values, Tensor):
            values = values.float() if values.is_floating_point() else values  # numpy has no bf16
            values = values.detach().cpu().numpy()
        return values

    def _rounded(self, confidence: np.ndarray) -> np.ndarray:
        """Confidences rounded down to a step of the scale."""
        table = expansion_table(_STEPS_PER_BIN * self.bins + 1)
        step = (compand(confidence) * (len(table) - 1)).astype(np.int64)
        return table[step - (table[step] > confidence)]

    def _count_recent(self) -> List[Table]:
        """Bring the tables of all classes up to date."""
        for index, parts in enumerate(self._recent):
            if parts:
                new = np.unique(np.concatenate(parts), return_counts=True)
                self._tables[index] = _joined(self._tables[index], new)
                parts.clear()
        self._num_recent = 0
        return self._tables

    def __getstate__(self) -> Dict[str, Any]:
        self._count_recent()  # what other ranks get is small
        return self.__dict__


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
    if label.dtype == np.uint8:  # every training sample: a table of all values
        limits = np.full(256, np.inf, thresholds.dtype)
        limits[: len(thresholds)] = thresholds
        kept = confidence >= limits[label]
    else:
        known = (label >= 0) & (label < len(thresholds))
        kept = known & (confidence >= thresholds[np.where(known, label, 0)])
    return np.where(kept, label, np.asarray(ignore_index, label.dtype))


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
    r"""The class that is furthest above its threshold, and its probability, before any selection.

    With :func:`apply_thresholds` after it, this is the rule of CRST (Zou et al., "Confidence
    Regularized Self-Training", ICCV 2019) and DST-CBC (Feng et al., arXiv 2004.08514v1):

    .. math::
        \hat y = \arg\max_c p_c / k_c, \quad \text{ignored where } \max_c p_c / k_c < 1

    A class with a low threshold, of which the network is not confident, takes pixels from classes
    that are more probable. :func:`apply_thresholds` alone (DMT) never changes the class.

    Args:
        prob: Class probabilities, (C, \*).
        thresholds: (C,), positive.

    Returns:
        Label (\*), long, and the probability of that class (\*), which
        need not be the largest.
    """
    limits = torch.as_tensor(thresholds).to(prob).reshape(-1, *[1] * (prob.ndim - 1))
    label = (prob / limits).argmax(dim=0)
    return label, prob.gather(0, label[None])[0]


def _joined(*tables: Table) -> Table:
    """Values of several tables, sorted, and how often each occurred."""
    values, place = np.unique(np.concatenate([table[0] for table in tables]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, place, np.concatenate([table[1] for table in tables]))
    return values, counts


def _ranked(table: Table, ratio: float) -> float:
    """Confidence that ``ratio`` of the pixels of a table reach."""
    values, counts = table
    total = int(counts.sum())
    if total == 0 or (ratio < 1 and total * ratio < 1):
        return KEEP_ALL
    rank = min(int(total * ratio), total - 1)
    return float(values[::-1][np.searchsorted(np.cumsum(counts[::-1]), rank, side='right')])
