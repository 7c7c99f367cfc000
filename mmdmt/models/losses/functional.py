"""Losses of semi-supervised segmentation as pure functions of tensors.

No registry, no config, no state. Conventions of all functions:

- ``logits`` (of the student) are (N, C, *) with any number of spatial dimensions, also none;
  labels, of any integer type, and their confidence in [0, 1] are (N, *). ``is_pseudo`` (N,) bool is
  True for samples without ground truth. A ValueError names what does not fit.
- ``ignore_index`` pixels are not learned: they neither add to a loss nor to its normalizer. A
  batch without any pixel left gives a loss of 0 that still has a (zero) gradient.
- Half-precision logits are handled in float32; float64 stays float64.
- Weights carry no gradient. Nothing is read back to the host, so nothing waits for the device.
- ``stats`` are detached scalar tensors.

Papers:
    - DMT: Feng et al., "DMT: Dynamic Mutual Training for Semi-Supervised Learning", Pattern
      Recognition 130, 2022 (arXiv 2004.08514).
    - DST-CBC: Feng et al., "Semi-Supervised Semantic Segmentation via Dynamic Self-Training and
      Class-Balanced Curriculum", 2020 (arXiv 2004.08514v1).
    - Dual Teacher: Na et al., "Switching Temporary Teachers for Semi-Supervised Semantic
      Segmentation", NeurIPS 2023 (arXiv 2310.18640).
    - CTT, whose contrastive losses are in :mod:`.contrast.functional`.
"""

import math
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdmt.checks import check_choice, check_range

from .contrast.functional import memory_contrast_loss, peer_contrast_loss  # noqa: F401

LossAndStats = Tuple[Tensor, Dict[str, Tensor]]

#: What :func:`dynamic_mutual_loss` does with pixels on which the student is more confident.
CONFLICTS = ('ignore', 'flip')
#: What :func:`masked_cross_entropy` is divided by.
NORMALIZERS = ('valid', 'all', 'kept')


# ----------------------------------------------------------------- offline methods: DMT, DST-CBC


def dynamic_mutual_loss(
    logits: Tensor,
    label: Tensor,
    confidence: Tensor,
    is_pseudo: Tensor,
    gamma1: float,
    gamma2: float,
    conflict: str = 'ignore',
    ignore_index: int = 255,
) -> LossAndStats:
    r"""Cross entropy whose weight shrinks where the student disagrees with a pseudo-label (DMT).

    With :math:`\hat y` the stored label, :math:`c` its confidence, :math:`p` the student's softmax:

    .. math::
        w = \begin{cases}
            p_{\hat y}^{\gamma_1} & \arg\max p = \hat y \\
            p_{\hat y}^{\gamma_2} & \arg\max p \ne \hat y,\; \max p \le c \\
            0                     & \arg\max p \ne \hat y,\; \max p > c
        \end{cases}
        \qquad L = \frac{\sum w \, CE(p, \hat y)}{\#\text{labeled pixels of the batch}}

    and ``w = 1`` on ground truth. Pixels of weight 0 count in the normalizer. With
    ``gamma1 == gamma2 == 0`` weighting is off: every weight is 1 and nothing is flipped, also
    where the student is more confident.

    Args:
        logits: (N, C, \*).
        label: Ground truth or pseudo-label, (N, \*).
        confidence: Of the pseudo-label, (N, \*). Not read on samples with ground truth.
        is_pseudo: (N,) bool.
        gamma1: Exponent where both agree, >= 0.
        gamma2: Exponent where they disagree and the teacher is more confident, >= 0.
        conflict: ``'ignore'`` as above; ``'flip'`` (the paper's ablation) learns the student's own
            class with weight :math:`(1 - c)^{\gamma_2}` where the student is more confident.
        ignore_index: Label of pixels that are not learned.

    Returns:
        The loss; counts of labeled pixels of pseudo samples: ``disagreement``, where both disagree,
        and ``student_wins``, where the student is more confident besides (with weighting off they
        cost reading the log-softmax once more); ``mean_weight`` over all labeled pixels.
    """
    _check_batch(logits, is_pseudo, label=label, confidence=confidence)
    check_range('gamma1', gamma1, 0)
    check_range('gamma2', gamma2, 0)
    check_choice('conflict', conflict, CONFLICTS)
    log_prob = _log_softmax(logits)
    target, valid = _split_ignored(label, ignore_index)
    pseudo = _per_sample(is_pseudo, label)
    if gamma1 == gamma2 == 0:
        cross_entropy = _cross_entropy(logits, log_prob, target)
        stats = _agreement_stats(log_prob, cross_entropy, pseudo & valid, confidence)
        stats['mean_weight'] = torch.ones((), device=logits.device)
        return _mean_over(cross_entropy, valid), stats

    student = _read_student(log_prob, target, confidence)
    weight = _mutual_weight(student, pseudo, gamma1, gamma2)
    if conflict == 'flip':
        doubt = 1 - confidence.detach().to(weight)
        flipped = student.wins & pseudo
        weight = torch.where(flipped, doubt**gamma2, weight)
        target = torch.where(flipped, student.label, target)
    stats = _conflict_stats(student, pseudo & valid, _mean_over(weight, valid))
    return _mean_over(weight * _cross_entropy(logits, log_prob, target), valid), stats


def dynamic_self_loss(
    logits: Tensor,
    label: Tensor,
    is_pseudo: Tensor,
    gamma: float,
    ignore_index: int = 255,
    confidence: Optional[Tensor] = None,
) -> LossAndStats:
    r"""Cross entropy weighted by the student's own trust in a pseudo-label (DST-CBC).

    .. math:: L = \sum w \, CE(p, \hat y) / \#\text{labeled pixels}, \quad w = p_{\hat y}^\gamma

    on pseudo-labels, ``w = 1`` on ground truth. The exponent is not negative; 0 turns weighting
    off. Returned are the loss and the statistics of :func:`dynamic_mutual_loss`, ``student_wins``
    only with ``confidence``, which is read for nothing else.
    """
    _check_batch(logits, is_pseudo, label=label, confidence=confidence)
    check_range('gamma', gamma, 0)
    log_prob = _log_softmax(logits)
    target, valid = _split_ignored(label, ignore_index)
    pseudo = _per_sample(is_pseudo, label)
    cross_entropy = _cross_entropy(logits, log_prob, target)
    weight = (-cross_entropy.detach()).exp() ** gamma
    weight = weight.masked_fill(~pseudo, 1.0)
    stats = _agreement_stats(log_prob, cross_entropy, pseudo & valid, confidence)
    stats['mean_weight'] = _mean_over(weight, valid)
    return _mean_over(weight * cross_entropy, valid), stats


def online_pseudo_loss(
    logits: Tensor,
    label: Tensor,
    is_pseudo: Tensor,
    threshold: float = 0.9,
    ignore_index: int = 255,
    valid: Optional[Tensor] = None,
) -> LossAndStats:
    """Cross entropy with labels that the student makes on the fly (DMT's online ablation).

    On pseudo samples the target is the student's own most probable class where its softmax is
    **above** ``threshold``, and nothing elsewhere. The stored label is not read there, since it is
    ``ignore_index`` where the *teacher* was not confident; ``valid`` names the padding instead.

    Args:
        logits: (N, C, *).
        label: Ground truth, (N, *); anything on pseudo samples.
        is_pseudo: (N,) bool.
        threshold: Softmax value that a label needs to exceed.
        ignore_index: Label of pixels that are not learned.
        valid: (N, *) bool, False on padded pixels. Defaults to no padding.

    Returns:
        The loss, averaged over labeled and self-labeled pixels together, and ``keep_ratio``, the
        share of pixels of pseudo samples that were labeled.
    """
    _check_batch(logits, is_pseudo, label=label, valid=valid)
    log_prob = _log_softmax(logits)
    target, learned = _split_ignored(label, ignore_index)
    inside = torch.ones_like(learned) if valid is None else valid
    pseudo = _per_sample(is_pseudo, label)
    top = log_prob.max(dim=1)
    kept = pseudo & inside & (top.values.exp() > threshold)
    target = torch.where(pseudo, top.indices, target)
    learned = torch.where(pseudo, kept, learned & inside)
    loss = _mean_over(_cross_entropy(logits, log_prob, target), learned)
    return loss, dict(keep_ratio=_count(kept) / _count(pseudo & inside).clamp(min=1))


# -------------------------------------------- online methods: Dual Teacher, CTT, Mean Teacher, ...


def confidence_share_loss(
    logits: Tensor,
    label: Tensor,
    confidence: Tensor,
    threshold: float,
    per_image: bool,
    ignore_index: int = 255,
) -> LossAndStats:
    """Cross entropy on all pixels, weighted by the share of confident ones.

    Every pixel is learned, confident or not; the weight is the share of valid pixels whose
    confidence reaches ``threshold``.

    - ``per_image=True`` (Dual Teacher's CutMix shift): every image has its own share. As
      published, the sum is divided by the number of pixels **whose cross entropy is positive**,
      whatever their weight: a pixel whose loss is 0 in float32 leaves the average.
    - ``per_image=False`` (Dual Teacher's ClassMix shift, CTT): one share for the batch, mean over
      all valid pixels.

    Args:
        logits: (N, C, *).
        label: Pseudo-label, (N, *).
        confidence: Its confidence, (N, *).
        threshold: Confidence a pixel needs (one exactly at it has it).
        per_image: See above.
        ignore_index: Label of pixels that are not learned and not counted.

    Returns:
        The loss, and ``confident_share``, the weight (its mean over images if ``per_image``).
    """
    _check_maps(logits, label=label, confidence=confidence)
    target, valid = _split_ignored(label, ignore_index)
    cross_entropy = _cross_entropy(logits, _log_softmax(logits), target)
    confident = (confidence.to(cross_entropy) >= threshold) & valid
    if not per_image:
        share = _count(confident) / _count(valid).clamp(min=1)
        return share * _mean_over(cross_entropy, valid), dict(confident_share=share)
    share = _count_per_sample(confident) / _count_per_sample(valid).clamp(min=1)
    counted = valid & (cross_entropy.detach() > 0)
    loss = _mean_over(_per_sample(share, label) * cross_entropy, counted)
    return loss, dict(confident_share=share.sum() / max(1, len(share)))


def masked_consistency_loss(
    logits: Tensor,
    label: Tensor,
    confidence: Tensor,
    threshold: float,
    valid: Tensor,
) -> LossAndStats:
    """:func:`masked_cross_entropy` over the number of valid pixels."""
    return masked_cross_entropy(logits, label, confidence, threshold, valid, 'valid')


def masked_cross_entropy(
    logits: Tensor,
    label: Tensor,
    confidence: Tensor,
    threshold: Union[float, Tensor],
    valid: Tensor,
    normalizer: str = 'valid',
) -> LossAndStats:
    """Cross entropy with pseudo-labels on confident pixels.

    A pixel is kept if it is valid and its confidence reaches the threshold. The summed cross
    entropy of kept pixels is divided according to ``normalizer``:

    - ``'valid'``: the number of valid pixels (FixMatch, UniMatch, Dual Teacher), so that the loss
      grows as the teacher gets more confident;
    - ``'all'``: the number of all pixels, padding included (AugSeg, iMAS);
    - ``'kept'``: the mean over kept pixels times all pixels over kept ones (U2PL), i.e. the square
      of the number of kept pixels over the number of all.

    Args:
        logits: (N, C, *).
        label: Pseudo-label, (N, *). Not read on pixels that are not kept.
        confidence: Its confidence, (N, *).
        threshold: Confidence a pixel needs (one exactly at it is kept), a number or a scalar.
        valid: (N, *) bool, False on padding and on other pixels that do not count.
        normalizer: See above.

    Returns:
        The loss, and ``keep_ratio``, the share of valid pixels that were kept.
    """
    _check_maps(logits, label=label, confidence=confidence, valid=valid)
    kept, divisor, stats = kept_pixels(confidence, threshold, valid, normalizer)
    return kept_cross_entropy(logits, label, kept) / divisor, stats


def kept_pixels(
    confidence: Tensor, threshold: Union[float, Tensor], valid: Tensor, normalizer: str
) -> Tuple[Tensor, Union[int, Tensor], Dict[str, Tensor]]:
    """Pixels that are learned, what a sum over them is divided by, and ``keep_ratio``.

    Arguments are those of :func:`masked_cross_entropy`.
    """
    check_choice('normalizer', normalizer, NORMALIZERS)
    valid = valid.bool()
    kept = (confidence.float() >= threshold) & valid
    num_all, num_valid, num_kept = max(1, valid.numel()), _count(valid).clamp(min=1), _count(kept)
    divisors = dict(valid=num_valid, all=num_all, kept=num_kept.clamp(min=1) ** 2 / num_all)
    return kept, divisors[normalizer], dict(keep_ratio=num_kept / num_valid)


def kept_cross_entropy(logits: Tensor, label: Tensor, kept: Tensor) -> Tensor:
    """Sum of the cross entropies of the pixels that are kept (N, *), whose labels alone count."""
    target = label.long().masked_fill(~kept, 0)
    return _cross_entropy(logits, _log_softmax(logits), target).masked_fill(~kept, 0).sum()


def squared_consistency_loss(
    logits: Tensor, probs: Tensor, threshold: float, valid: Tensor, per_pixel: bool = False
) -> LossAndStats:
    """Squared error between the softmax of a student and soft targets (CutMix-Seg, BMVC 2020).

    The error is summed over classes and averaged over valid pixels. Pixels with a largest target
    probability of at least ``threshold`` are confident: the loss is multiplied by their share, or
    ``per_pixel`` the error of the others is 0.

    Args:
        logits: Of the student, (N, C, *).
        probs: Soft targets, (N, C, *).
        threshold: Confidence a pixel needs, in [0, 1].
        valid: (N, *) bool, False on padding.
        per_pixel: See above.

    Returns:
        The loss, and ``keep_ratio``, the share of valid pixels that are confident.
    """
    _check_maps(logits, valid=valid)
    error = (logits.float().softmax(dim=1) - probs).square().sum(dim=1)
    kept = (probs.amax(dim=1) >= threshold) & valid
    share = _count(kept) / _count(valid).clamp(min=1)
    if per_pixel:
        return error.masked_fill(~kept, 0).sum() / _count(valid).clamp(min=1), dict(
            keep_ratio=share
        )
    return _mean_over(error, valid) * share, dict(keep_ratio=share)


# ------------------------------------------------------------------------------- labeled images


def ohem_cross_entropy(
    logits: Tensor, label: Tensor, thresh: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """Cross entropy averaged over hard pixels (online hard example mining).

    A pixel is hard if the softmax of its class is at most ``thresh`` or among the ``min_kept``
    lowest of the batch: Shrivastava et al., CVPR 2016, in the form of the code that UniMatch and
    others train Cityscapes with.

    Args:
        logits: (N, C, *).
        label: Ground truth, (N, *).
        thresh: Softmax value, in [0, 1].
        min_kept: Number of pixels of the batch that are learned at least, >= 0; with fewer labeled
            ones all are.
        ignore_index: Label of pixels that are not learned.
    """
    _check_maps(logits, label=label)
    target, valid = _split_ignored(label, ignore_index)
    cross_entropy = _cross_entropy(logits, _log_softmax(logits), target)
    prob = (-cross_entropy.detach()).exp().masked_fill(~valid, 1)
    # topk and not kthvalue, whose CUDA kernel has no deterministic version
    lowest = prob.flatten().topk(min(min_kept, prob.numel()), largest=False).values[-1:]
    hard = prob <= F.pad(lowest, (0, 1), value=thresh).max()
    return _mean_over(cross_entropy, valid & hard)


# ------------------------------------------------------------------------ DMT for classification


def sigmoid_ramp(step: int, total: int) -> float:
    """Ramp-up factor of DMT's gammas for classification.

    ``exp(-5 (1 - (step + 1) / total)^2)`` after ``step >= 1`` steps. As published, the factor is 1
    before the first step, and 1 again once the schedule is over.

    Args:
        step: Training steps already taken, >= 0.
        total: Length of the schedule in steps, >= 1.
    """
    if step < 0 or total < 1:
        raise ValueError(f'`step` must be >= 0 and `total` >= 1, got {step} and {total}')
    if step == 0 or step > total:
        return 1.0
    return math.exp(-5 * (1 - (step + 1) / total) ** 2)


def mixup_weights(
    logits: Tensor,
    soft_label: Tensor,
    is_pseudo: Tensor,
    gamma1: float,
    gamma2: float,
    perm: Optional[Tensor] = None,
    lam: float = 1.0,
) -> LossAndStats:
    """Per-sample DMT weights of a classification batch, mixed as mixup mixes its images.

    Weights are those of :func:`dynamic_mutual_loss`, computed on the images **before** mixup; the
    label and confidence of a sample are the position and value of the maximum of its stored soft
    label. With ``gamma1 == gamma2 == 0`` all are 1.

    Args:
        logits: Student logits of the unmixed images, (N, C).
        soft_label: Stored class probabilities, (N, C); one-hot for labeled samples.
        is_pseudo: (N,) bool.
        gamma1: Exponent where student and label agree, times :func:`sigmoid_ramp`.
        gamma2: Exponent where they disagree and the label is more confident, times the ramp.
        perm: (N,) mixup partners. Without it the weights are not mixed.
        lam: Mixup's share of a sample itself, in [0, 1].

    Returns:
        Weights (N,), ``lam * w + (1 - lam) * w[perm]``; and ``disagreement`` and ``student_wins``
        (counts of pseudo samples), ``mean_weight`` (before mixing).
    """
    if soft_label.shape != logits.shape or logits.ndim != 2:
        raise ValueError(
            f'`logits` and `soft_label` must both be (N, C), got {tuple(logits.shape)} and '
            f'{tuple(soft_label.shape)}'
        )
    _check_batch(logits, is_pseudo)
    check_range('gamma1', gamma1, 0)
    check_range('gamma2', gamma2, 0)
    confidence, label = soft_label.max(dim=1)
    student = _read_student(_log_softmax(logits), label, confidence)
    weight = torch.ones_like(student.trust)
    if not gamma1 == gamma2 == 0:
        weight = _mutual_weight(student, is_pseudo, gamma1, gamma2)
    stats = _conflict_stats(student, is_pseudo, weight.mean())
    return (weight if perm is None else lam * weight + (1 - lam) * weight[perm]), stats


def mixup_loss(
    logits: Tensor, soft_label: Tensor, perm: Tensor, lam: float, weight: Tensor
) -> Tensor:
    """Weighted cross entropy of mixed images (DMT for classification).

    ``sum_i weight_i (lam CE(p_i, y_i) + (1 - lam) CE(p_i, y_perm(i))) / N`` with the hard labels
    ``y`` of the soft ones.

    Args:
        logits: Of the mixed images, (N, C).
        soft_label: Class probabilities of the unmixed images, (N, C).
        perm: (N,) mixup partners.
        lam: Mixup's share of a sample itself, in [0, 1].
        weight: (N,), of :func:`mixup_weights`.
    """
    log_prob, label = _log_softmax(logits), soft_label.argmax(dim=1)
    mixed = lam * _cross_entropy(logits, log_prob, label)
    mixed = mixed + (1 - lam) * _cross_entropy(logits, log_prob, label[perm])
    return (weight * mixed).sum() / max(1, len(logits))


# ------------------------------------------------------------------------- parts: mutual weights


class _Student(NamedTuple):
    """What the student predicts on each pixel, without gradient, each (N, *)."""

    label: Tensor  # most probable class
    trust: Tensor  # probability of the target
    agrees: Tensor  # whether label and target are the same class
    wins: Tensor  # whether it disagrees and is more confident; a tie goes to the teacher


def _read_student(log_prob: Tensor, target: Tensor, confidence: Tensor) -> _Student:
    top = log_prob.max(dim=1)
    agrees = top.indices == target
    wins = ~agrees & (top.values.exp() > confidence.to(top.values))
    return _Student(top.indices, _of_class(log_prob, target).exp(), agrees, wins)


def _mutual_weight(student: _Student, pseudo: Tensor, gamma1: float, gamma2: float) -> Tensor:
    weight = torch.where(student.agrees, student.trust**gamma1, student.trust**gamma2)
    return weight.masked_fill(student.wins, 0.0).masked_fill(~pseudo, 1.0)


def _conflict_stats(student: _Student, counted: Tensor, mean_weight: Tensor) -> Dict[str, Tensor]:
    disagreement, wins = _count(~student.agrees & counted), _count(student.wins & counted)
    return dict(disagreement=disagreement, student_wins=wins, mean_weight=mean_weight)


def _agreement_stats(
    log_prob: Tensor, cross_entropy: Tensor, counted: Tensor, confidence: Optional[Tensor]
) -> Dict[str, Tensor]:
    """Counts of pixels on which the student disagrees, and is more confident besides.

    Only the largest value is looked for and not its class, which on a CPU would take as long as
    the rest of the loss. A label that shares the first place counts as agreed on.
    """
    top = log_prob.amax(dim=1)
    disagrees = (-cross_entropy.detach() < top) & counted
    stats = dict(disagreement=_count(disagrees))
    if confidence is not None:
        stats['student_wins'] = _count(disagrees & (top.exp() > confidence.to(top)))
    return stats


# ------------------------------------------------------------------------------ parts: pixel maps


def _log_softmax(logits: Tensor) -> Tensor:
    """Without gradient, which :func:`_cross_entropy` makes: the one full-size tensor of a loss."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return F.log_softmax(logits.detach(), dim=1, dtype=torch.float32 if half else None)


def _split_ignored(label: Tensor, ignore_index: int) -> Tuple[Tensor, Tensor]:
    """Long targets that may be gathered everywhere, and where they count."""
    valid = label != ignore_index
    return label.long().masked_fill(~valid, 0), valid


def _of_class(values: Tensor, target: Tensor) -> Tensor:
    """Value of the target's class: (N, C, *), (N, *) -> (N, *)."""
    # gather and not nll_loss, whose CUDA kernel has no deterministic version
    return values.gather(1, target.unsqueeze(1)).squeeze(1)


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy (N, *) of logits whose log-softmax is known; its gradient is made in place.

    Autograd would make one full-size tensor for the gradient of the log-softmax, nearly all zeros,
    and another for that of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_prob: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(log_prob, target)
        ctx.dtype = logits.dtype
        return -_of_class(log_prob, target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None, None]:
        log_prob, target = ctx.saved_tensors
        grad = grad.unsqueeze(1)
        result = log_prob.exp().mul_(grad).scatter_add_(1, target.unsqueeze(1), -grad)
        return result.to(ctx.dtype), None, None


_cross_entropy = _CrossEntropy.apply


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the mask divided by its size; 0 if it is empty."""
    return values.masked_fill(~mask, 0).sum() / _count(mask).clamp(min=1)


def _count(mask: Tensor) -> Tensor:
    # mmengine logs `.mean()` of statistics, which integer tensors do not have
    return mask.sum().float()


def _count_per_sample(mask: Tensor) -> Tensor:
    return mask.float().sum(dim=tuple(range(1, mask.ndim))) if mask.ndim > 1 else mask.float()


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values in a shape that broadcasts with (N, *)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _check_maps(logits: Tensor, **maps: Optional[Tensor]) -> None:
    expected = (logits.shape[0], *logits.shape[2:])
    for name, value in maps.items():
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(
                f'`{name}` must be {expected} for `logits` of shape {tuple(logits.shape)}, '
                f'got {tuple(value.shape)}'
            )


def _check_batch(logits: Tensor, is_pseudo: Tensor, **maps: Optional[Tensor]) -> None:
    _check_maps(logits, **maps)
    if is_pseudo.dtype != torch.bool or is_pseudo.shape != logits.shape[:1]:
        raise ValueError(
            f'`is_pseudo` must be a bool tensor of shape ({logits.shape[0]},), got '
            f'{is_pseudo.dtype} of shape {tuple(is_pseudo.shape)}'
        )
