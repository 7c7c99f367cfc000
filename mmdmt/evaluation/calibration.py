"""Calibration and selective prediction from histograms: sums over pixels, never pixels.

A histogram of confidence is (bins, 3): of the pixels whose confidence falls into a bin their
number, the sum of their confidence, and how many of them are correct. Histograms of images add up
to that of the dataset, so everything is pooled over pixels.
"""

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from mmdmt.checks import check_range

#: Bins of selective prediction, of equal width in the log-odds of the confidence: most pixels of a
#: network are more certain than 0.99, and which of them are left out first has to be told apart.
FINE_BINS = 512
_LOG_ODDS = (-8.0, 17.0)  # at 17 the confidence differs from 1 by the last digit of float32


def confidence_histogram(
    confidence: Tensor,
    correct: Tensor,
    num_bins: int = 15,
    group: Optional[Tensor] = None,
    num_groups: int = 1,
) -> Tensor:
    """Number, summed confidence and number of correct pixels in bins of equal width.

    Bin b of B holds the confidence in (b / B, (b + 1) / B], the first one also 0, as Guo et al.

    Args:
        confidence: Any shape, in [0, 1].
        correct: Bool of the same shape.
        num_bins: Number of bins B. 15 is usual.
        group: Long, broadcast to that shape: which of ``num_groups`` histograms a pixel is for,
            such as that of its class.
        num_groups: Number G of them.

    Returns:
        (B, 3) double, or (G, B, 3) with ``group``.
    """
    index = _bins_of(confidence, num_bins)
    if group is not None:
        index += group * num_bins
    found = _histogram(index, confidence, index[correct], num_groups * num_bins)
    return found.view(num_groups, num_bins, 3) if group is not None else found


def classwise_histogram(prob: Tensor, label: Tensor, num_bins: int = 15) -> Tensor:
    """The histograms of the probability of each class; "correct" are the pixels of the class.

    Args:
        prob: (C, n) in [0, 1].
        label: (n,) long, true classes.
        num_bins: Number of bins B.

    Returns:
        (C, B, 3) double.
    """
    index = _bins_of(prob, num_bins)
    index += num_bins * torch.arange(len(prob), device=prob.device, dtype=index.dtype)[:, None]
    found = _histogram(index, prob, index.gather(0, label[None]), len(prob) * num_bins)
    return found.view(len(prob), num_bins, 3)


def _bins_of(confidence: Tensor, num_bins: int) -> Tensor:
    # In place and short: the probabilities of all classes are the largest maps there are.
    return confidence.mul(num_bins).ceil_().sub_(1).clamp_(0, num_bins - 1).int()


def _histogram(index: Tensor, confidence: Tensor, correct: Tensor, size: int) -> Tensor:
    """(size, 3) of the bin of each pixel, its confidence, and the bins of correct pixels."""
    index = index.flatten()
    parts = (
        torch.bincount(index, minlength=size).double(),
        # In single precision a sum over an image would stop growing.
        torch.bincount(index, confidence.flatten().double(), size),
        torch.bincount(correct.flatten(), minlength=size).double(),
    )
    return torch.stack(parts, dim=-1)


def expected_calibration_error(hist: Tensor) -> Tensor:
    """ECE: the gap between confidence and accuracy of a bin, weighted by its pixels.

    Sum over bins of n_b / n * abs(accuracy_b - confidence_b), in [0, 1]; Guo et al., "On
    calibration of modern neural networks", ICML 2017. Of :func:`classwise_histogram`, the mean
    over classes is the class-wise ECE (Nixon et al., "Measuring calibration in deep learning",
    CVPR workshops 2019; Kull et al., "Beyond temperature scaling", NeurIPS 2019).

    Args:
        hist: (..., bins, 3) of :func:`confidence_histogram`, or anything torch makes a tensor of.

    Returns:
        (...) double; NaN of a histogram without pixels.
    """
    count, confidence, correct = torch.as_tensor(hist, dtype=torch.float64).unbind(-1)
    return (correct - confidence).abs().sum(-1) / count.sum(-1)


def maximum_calibration_error(hist: Tensor) -> Tensor:
    """MCE: the largest gap of a bin that holds pixels (Guo et al.); see the ECE."""
    count, confidence, correct = torch.as_tensor(hist, dtype=torch.float64).unbind(-1)
    largest = ((correct - confidence).abs() / count.clamp(min=1)).amax(-1)
    return largest.masked_fill(count.sum(-1) == 0, math.nan)


def selective_histogram(
    confidence: Tensor, pred: Tensor, label: Tensor, num_classes: int
) -> Tensor:
    """Areas of the classes by confidence, from the least confident bin to the most confident one.

    Args:
        confidence: (n,) in [0, 1].
        pred: (n,) long, predicted classes.
        label: (n,) long, true classes.
        num_classes: Number of classes C.

    Returns:
        (:data:`FINE_BINS`, C, 3) double: pixels that were predicted to be of a class, that are,
        and both.
    """
    low, high = _LOG_ODDS
    scaled = torch.logit(confidence.clamp(max=1)).sub_(low).mul_(FINE_BINS / (high - low))
    first = scaled.clamp_(0, FINE_BINS - 1).long() * num_classes
    found = (first + pred, first + label, (first + pred)[pred == label])
    areas = [torch.bincount(index, minlength=FINE_BINS * num_classes) for index in found]
    return torch.stack(areas, dim=-1).double().view(FINE_BINS, num_classes, 3)


def covered_areas(hist: Tensor, coverage: float) -> Tensor:
    """Areas of the classes over the most confident share of all pixels.

    Of the bin that is cut, pixels count in proportion.

    Args:
        hist: (bins, C, 3) of :func:`selective_histogram`.
        coverage: The share, in (0, 1].

    Returns:
        (C, 3) double, see :func:`mean_iou`.
    """
    count = hist[..., 0].sum(-1)
    above = count.flip(0).cumsum(0).flip(0) - count  # pixels that are more confident
    share = (coverage * count.sum() - above) / count.clamp(min=1)
    return (hist * share.clamp(0, 1)[:, None, None]).sum(0)


def mean_iou(areas: Tensor) -> Tensor:
    """Mean IoU over the classes that occur, as mmseg's, in [0, 1]; NaN if none does.

    Args:
        areas: (C, 3): pixels predicted, true, and both.
    """
    pred, label, both = areas.unbind(-1)
    return (both / (pred + label - both)).nanmean()


def area_under_risk_coverage(hist: Tensor) -> Tensor:
    """AURC: the mean, over all coverages, of the error rate of the most confident pixels.

    1 / n * sum over k of (errors among the k most confident pixels) / k; Geifman, Uziel and
    El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019. Pixels
    of one bin are in random order: their expected risks are summed exactly, by the digamma
    function.

    Args:
        hist: (bins, 2), from the least confident: pixels, and correct ones.

    Returns:
        () double, NaN without pixels.
    """
    count, correct = hist.double().flip(0).unbind(-1)
    errors = count - correct
    rate = errors / count.clamp(min=1)
    before, errors_before = count.cumsum(0) - count, errors.cumsum(0) - errors
    harmonic = torch.digamma(before + count + 1) - torch.digamma(before + 1)
    return (rate * count + (errors_before - rate * before) * harmonic).sum() / count.sum()


def certainty_table(entropy: Tensor, correct: Tensor, threshold: Tensor) -> Tensor:
    """Pixels by whether they are certain and whether they are correct.

    Mukhoti and Gal, "Evaluating Bayesian deep learning methods for semantic segmentation", 2018.

    Args:
        entropy: (n,) entropy of the predicted distribution.
        correct: (n,) bool.
        threshold: () largest entropy of a certain pixel: the median of the image, so that equal
            entropies at the median are certain.

    Returns:
        (2, 2) double; rows: uncertain, certain; columns: wrong, correct.
    """
    index = 2 * (entropy <= threshold).long() + correct
    return torch.bincount(index, minlength=4).double().view(2, 2)


def reliable_segmentation_score(
    miou: float,
    ece: float,
    certain_accuracy: float,
    wrong_uncertainty: float,
    weights: Sequence[float] = (1, 1, 1, 1),
) -> float:
    """RSS: the weighted harmonic mean of four shares, of which each must be good.

    sum(w) / (w1 / mIoU + w2 / (1 - ECE) + w3 / p(accurate | certain) + w4 / p(uncertain | wrong));
    "Rethinking Semi-supervised Segmentation Beyond Accuracy", DAGM GCPR 2025 (arXiv 2506.05917).

    Args:
        miou: Mean IoU, in [0, 1] as all four.
        ece: Expected calibration error.
        certain_accuracy: Share of the certain pixels that are correct.
        wrong_uncertainty: Share of the wrong pixels that are uncertain.
        weights: Of the four, in this order.

    Returns:
        In [0, 1]; NaN if one of the four is.

    Raises:
        ValueError: If a share is outside [0, 1], such as one in percent, or the weights are not
            four numbers of at least 0 with a positive sum.
    """
    named = dict(
        miou=miou,
        ece=ece,
        certain_accuracy=certain_accuracy,
        wrong_uncertainty=wrong_uncertainty,
    )
    if len(weights) != 4 or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f'`weights` must be four numbers of at least 0, not all 0, got {weights}')
    for name, value in named.items():
        if not math.isnan(value):
            check_range(name, float(value), 0, 1)
    parts = [float(miou), 1 - float(ece), float(certain_accuracy), float(wrong_uncertainty)]
    if any(math.isnan(part) for part in parts):
        return math.nan
    if any(part == 0 and weight for part, weight in zip(parts, weights)):
        return 0.0
    return sum(weights) / sum(w / part for w, part in zip(weights, parts) if w)
