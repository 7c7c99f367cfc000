"""Losses of semi-supervised segmentation as pure functions of tensors.

No registry, no config, no state. Conventions of all functions:

- ``logits`` are (N, C, *) with any number of spatial dimensions, also none; labels and
  confidence maps are (N, *). Labels are of any integer type.
- ``ignore_index`` pixels neither add to a loss nor to its normalizer. A batch without any pixel
  left gives a loss of 0 that still has a (zero) gradient.
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
    - CTT: Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
      Neurocomputing 508, 2022 (arXiv 2209.01327).
"""

import contextlib
import math
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LossAndStats = Tuple[Tensor, Dict[str, Tensor]]

#: What :func:`dynamic_mutual_loss` does with pixels on which the student is surer.
CONFLICTS = ('ignore', 'flip')
#: What :func:`masked_cross_entropy` is divided by.
NORMALIZERS = ('valid', 'all', 'kept')

# Similarities (anchor, bank feature) held at a time by the contrastive losses: 64 MiB of float32.
_MAX_SIMILARITIES = 1 << 24
# Similarity of a bank row that holds nothing: its exponential is 0.
_NO_SIMILARITY = -1e4


# ---------------------------------------------------------------- off-line methods: DMT, DST-CBC


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
    where the student is surer.

    Args:
        logits: Student logits, (N, C, \*).
        label: Ground truth or pseudo-label, (N, \*).
        confidence: Teacher's confidence of the pseudo-label in [0, 1], (N, \*). Not read on
            samples with ground truth.
        is_pseudo: (N,) bool, True for samples with pseudo-labels.
        gamma1: Exponent where both agree, >= 0.
        gamma2: Exponent where they disagree and the teacher is surer, >= 0.
        conflict: ``'ignore'`` as above; ``'flip'`` (the paper's ablation) learns the student's own
            class with weight :math:`(1 - c)^{\gamma_2}` where the student is surer.
        ignore_index: Label of pixels that are not learned.

    Returns:
        The loss, and ``disagreement`` and ``student_wins`` (counts of labeled pixels of pseudo
        samples on which both disagree, and on which the student is surer besides; where weighting
        is off too, at the cost of reading the log-softmax once more), ``mean_weight`` (over all
        labeled pixels).

    Raises:
        ValueError: If shapes do not fit, ``is_pseudo`` is not boolean, a gamma is negative, or
            ``conflict`` is unknown.
    """
    _check_maps(logits, label=label, confidence=confidence)
    _check_is_pseudo(logits, is_pseudo)
    _check_gammas(gamma1=gamma1, gamma2=gamma2)
    if conflict not in CONFLICTS:
        raise ValueError(f'`conflict` must be one of {CONFLICTS}, got {conflict!r}')
    log_prob = _log_softmax(logits)
    target, valid = _split_ignored(label, ignore_index)
    pseudo = _per_sample(is_pseudo, label)
    if gamma1 == gamma2 == 0:
        cross_entropy = _cross_entropy(logits, log_prob, target)
        stats = _agreement_stats(log_prob, cross_entropy, pseudo & valid, confidence)
        stats['mean_weight'] = torch.ones((), device=logits.device)
        return _mean_over(cross_entropy, valid), stats

    student = _read_student(log_prob, target)
    student_wins = _student_wins(student, confidence)
    weight = _mutual_weight(student, student_wins, gamma1, gamma2)
    if conflict == 'flip':
        doubt = 1 - confidence.detach().to(weight)
        weight = torch.where(student_wins, doubt**gamma2, weight)
        target = torch.where(student_wins & pseudo, student.label, target)
    weight = weight.masked_fill(~pseudo, 1.0)

    counted = pseudo & valid
    stats = dict(
        disagreement=_count(~student.agrees & counted),
        student_wins=_count(student_wins & counted),
        mean_weight=_mean_over(weight, valid),
    )
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

    on pseudo-labels, ``w = 1`` on ground truth.

    Args:
        logits: Student logits, (N, C, \*).
        label: Ground truth or pseudo-label, (N, \*).
        is_pseudo: (N,) bool, True for samples with pseudo-labels.
        gamma: Exponent, >= 0; 0 turns weighting off.
        ignore_index: Label of pixels that are not learned.
        confidence: Confidence of the pseudo-label in [0, 1], (N, \*). For statistics only.

    Returns:
        The loss, and ``disagreement`` (count of labeled pixels of pseudo samples on which student
        and label disagree, at the cost of reading the log-softmax once more), with ``confidence``
        ``student_wins`` (on which the student is surer besides), and ``mean_weight`` (over all
        labeled pixels).

    Raises:
        ValueError: If shapes do not fit, ``is_pseudo`` is not boolean, or ``gamma`` is negative.
    """
    _check_maps(logits, label=label, **({} if confidence is None else dict(confidence=confidence)))
    _check_is_pseudo(logits, is_pseudo)
    _check_gammas(gamma=gamma)
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
    """Cross entropy with labels that the student makes on the fly (DMT's on-line ablation).

    On pseudo samples the target is the student's own most probable class where its softmax is
    **above** ``threshold``, and nothing elsewhere. The stored label is not read there, not even
    where it is ``ignore_index``: a stored label is empty where the *teacher* was unsure. Pixels
    that are no part of the image must therefore be named by ``valid``.

    Args:
        logits: Student logits, (N, C, *).
        label: Ground truth, (N, *); anything on pseudo samples.
        is_pseudo: (N,) bool, True for samples without ground truth.
        threshold: Softmax value that a label needs to exceed.
        ignore_index: Label of pixels that are not learned.
        valid: (N, *) bool, False on padded pixels. Defaults to no padding.

    Returns:
        The loss, averaged over labeled and self-labeled pixels together, and ``keep_ratio``, the
        share of pixels of pseudo samples that were labeled.

    Raises:
        ValueError: If shapes do not fit or ``is_pseudo`` is not boolean.
    """
    _check_maps(logits, label=label, **({} if valid is None else dict(valid=valid)))
    _check_is_pseudo(logits, is_pseudo)
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


# ------------------------------------------- on-line methods: Dual Teacher, CTT, Mean Teacher, ...


def confidence_share_loss(
    logits: Tensor,
    label: Tensor,
    confidence: Tensor,
    threshold: float,
    per_image: bool,
    ignore_index: int = 255,
) -> LossAndStats:
    """Cross entropy on all pixels, weighted by the share of confident ones.

    Every pixel is learned, sure or not; the weight is the share of valid pixels whose confidence
    reaches ``threshold``.

    - ``per_image=True`` (Dual Teacher's CutMix shift): every image has its own share. As
      published, the sum is divided by the number of pixels **whose cross entropy is positive**,
      whatever their weight: a pixel the student fits to the last float32 bit leaves the average.
    - ``per_image=False`` (Dual Teacher's ClassMix shift, CTT): one share for the batch, mean over
      all valid pixels.

    Args:
        logits: Student logits, (N, C, *).
        label: Pseudo-label, (N, *).
        confidence: Its confidence, (N, *).
        threshold: Confidence that counts as sure (a pixel exactly at it does).
        per_image: See above.
        ignore_index: Label of pixels that are not learned and not counted.

    Returns:
        The loss, and ``confident_share``, the weight (its mean over images if ``per_image``).

    Raises:
        ValueError: If shapes do not fit.
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
    """:func:`masked_cross_entropy` over the number of valid pixels.

    Dual Teacher's implicit consistency, FixMatch, UniMatch.
    """
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
    entropy of kept pixels is divided by what ``normalizer`` says:

    - ``'valid'``: the number of valid pixels (FixMatch, UniMatch, Dual Teacher), so that the loss
      grows as the teacher gets more confident;
    - ``'all'``: the number of all pixels, padding included (AugSeg, iMAS);
    - ``'kept'``: the mean over kept pixels times all pixels over kept ones (U2PL), i.e. the square
      of the number of kept pixels over the number of all.

    Args:
        logits: Student logits, (N, C, *).
        label: Pseudo-label, (N, *). Not read on pixels that are not kept.
        confidence: Its confidence, (N, *).
        threshold: Confidence a pixel needs (one exactly at it is kept), a number or a scalar.
        valid: (N, *) bool, False on padding and on other pixels that do not count.
        normalizer: See above.

    Returns:
        The loss, and ``keep_ratio``, the share of valid pixels that were kept.

    Raises:
        ValueError: If shapes do not fit or the normalizer is unknown.
    """
    _check_maps(logits, label=label, confidence=confidence, valid=valid)
    if normalizer not in NORMALIZERS:
        raise ValueError(f'`normalizer` must be one of {NORMALIZERS}, got {normalizer!r}')
    valid = valid.bool()
    kept = (confidence.float() >= threshold) & valid
    target = label.long().masked_fill(~kept, 0)
    cross_entropy = _cross_entropy(logits, _log_softmax(logits), target)
    num_valid, num_kept = _count(valid).clamp(min=1), _count(kept)
    divisor = num_valid
    if normalizer == 'all':
        divisor = valid.numel()
    elif normalizer == 'kept':
        divisor = num_kept.clamp(min=1) ** 2 / valid.numel()
    loss = cross_entropy.masked_fill(~kept, 0).sum() / divisor
    return loss, dict(keep_ratio=num_kept / num_valid)


# ------------------------------------------------------------------------- contrastive losses: CTT


def memory_contrast_loss(
    feat: Tensor,
    label: Tensor,
    mask: Tensor,
    bank: Tensor,
    temperature: float = 0.1,
    filled: Optional[Tensor] = None,
) -> Tensor:
    r"""Pulls pixel features to their class in a memory bank (CTT's high-level contrast).

    With :math:`s` the cosine similarity over ``temperature``, the mean over the :math:`K` bank
    features :math:`b` of an anchor's class of

    .. math:: -\log \frac{e^{s(f, b)}}{e^{s(f, b)} + \sum_{b'} e^{s(f, b')}},
        \quad b' \text{ of all other classes,}

    averaged over the anchors of a class, then over the classes that have anchors.

    Memory is bounded: anchors are handled in chunks, which are computed again in the backward
    pass. All pixels are computed and the mask is applied to the result, since gathering the
    anchors would make the host wait for the device.

    Args:
        feat: Pixel features, (N, D, H, W).
        label: Their classes, (N, H, W).
        mask: (N, H, W) bool, True on anchors. Labels outside 0..C-1 are never anchors.
        bank: Features of every class, (C, K, D), C >= 2, all filled (see
            ``ClassMemoryBank``), or see ``filled``. No gradient flows
            into it.
        temperature: Scale of the similarities.
        filled: (C, K) bool, False on bank rows that hold no feature: these are neither positives
            nor negatives, and classes without any other row have no anchors. Defaults to all.

    Returns:
        Scalar loss; 0 where there are no anchors.

    Raises:
        ValueError: If shapes do not fit or the bank has a single class.
    """
    anchors, classes, chosen, bank = _prepare_contrast(feat, label, mask, bank, filled)
    bank = bank / temperature
    if filled is not None:
        chosen &= filled.any(dim=1)[classes]

    def loss_of(anchor: Tensor, cls: Tensor) -> Tensor:
        similarity = _similarities(anchor, bank, filled)
        own = cls[:, None, None].expand(-1, 1, similarity.shape[2])
        positive = similarity.gather(1, own).squeeze(1)
        negative = _log_sum_of_others(similarity, cls)
        losses = F.softplus(negative[:, None] - positive)
        return losses.mean(dim=1) if filled is None else _mean_over_rows(losses, filled[cls])

    losses = _in_chunks(loss_of, [anchors, classes], bank.shape[0] * bank.shape[1])
    return _mean_over_classes(losses, classes, chosen, bank.shape[0])


def peer_contrast_loss(
    feat: Tensor,
    peer_feat: Tensor,
    label: Tensor,
    mask: Tensor,
    bank: Tensor,
    temperature: float = 0.5,
    filled: Optional[Tensor] = None,
) -> Tensor:
    """Pulls pixel features to the same pixel's feature in the peer network (CTT, low level).

    As :func:`memory_contrast_loss`, but the only positive of an anchor is the feature of the same
    pixel in ``peer_feat``; negatives are the bank features of other classes.

    Args:
        feat: Pixel features of the network that learns, (N, D, H, W).
        peer_feat: Pixel features of its peer, (N, D, H, W). No gradient flows into them.
        label: Classes, by the peer's prediction, (N, H, W).
        mask: (N, H, W) bool, True on anchors. Labels outside 0..C-1 are never anchors.
        bank: (C, K, D), C >= 2; CTT gives both networks' banks concatenated along K.
        temperature: Scale of the similarities.
        filled: (C, K) bool, False on bank rows that are no negatives. Defaults to all.

    Returns:
        Scalar loss; 0 where there are no anchors.

    Raises:
        ValueError: If shapes do not fit or the bank has a single class.
    """
    if peer_feat.shape != feat.shape:
        raise ValueError(
            f'`peer_feat` must have the shape of `feat`, {tuple(feat.shape)}, '
            f'got {tuple(peer_feat.shape)}'
        )
    anchors, classes, chosen, bank = _prepare_contrast(feat, label, mask, bank, filled)
    bank = bank / temperature
    peers = F.normalize(_as_rows(peer_feat.detach()), dim=1) / temperature

    def loss_of(anchor: Tensor, peer: Tensor, cls: Tensor) -> Tensor:
        negative = _log_sum_of_others(_similarities(anchor, bank, filled), cls)
        return F.softplus(negative - (anchor * peer).sum(dim=1))

    losses = _in_chunks(loss_of, [anchors, peers, classes], bank.shape[0] * bank.shape[1])
    return _mean_over_classes(losses, classes, chosen, bank.shape[0])


# ------------------------------------------------------------------------ DMT for classification


def sigmoid_ramp(step: int, total: int) -> float:
    """Ramp-up factor of DMT's gammas for classification.

    ``exp(-5 (1 - (step + 1) / total)^2)`` after ``step >= 1`` steps. As published, the factor is 1
    before the first step, and 1 again once the schedule is over.

    Args:
        step: Training steps already taken, >= 0.
        total: Length of the schedule in steps, >= 1.

    Returns:
        Factor in (0, 1].

    Raises:
        ValueError: If ``step`` is negative or ``total`` is not positive.
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
        is_pseudo: (N,) bool, True for samples with pseudo-labels.
        gamma1: Exponent where student and label agree, times :func:`sigmoid_ramp`.
        gamma2: Exponent where they disagree and the label is surer, times :func:`sigmoid_ramp`.
        perm: (N,) mixup partners. Without it the weights are not mixed.
        lam: Mixup's share of a sample itself, in [0, 1].

    Returns:
        Weights (N,), ``lam * w + (1 - lam) * w[perm]``; and ``disagreement`` and ``student_wins``
        (counts of pseudo samples), ``mean_weight`` (before mixing).

    Raises:
        ValueError: If shapes do not fit, ``is_pseudo`` is not boolean, or a gamma is negative.
    """
    if soft_label.shape != logits.shape or logits.ndim != 2:
        raise ValueError(
            f'`logits` and `soft_label` must both be (N, C), got {tuple(logits.shape)} and '
            f'{tuple(soft_label.shape)}'
        )
    _check_is_pseudo(logits, is_pseudo)
    _check_gammas(gamma1=gamma1, gamma2=gamma2)
    confidence, label = soft_label.max(dim=1)
    student = _read_student(_log_softmax(logits), label)
    student_wins = _student_wins(student, confidence)
    weight = torch.ones_like(student.confidence)
    if not gamma1 == gamma2 == 0:
        weight = _mutual_weight(student, student_wins, gamma1, gamma2)
        weight = weight.masked_fill(~is_pseudo, 1.0)
    stats = dict(
        disagreement=_count(~student.agrees & is_pseudo),
        student_wins=_count(student_wins & is_pseudo),
        mean_weight=weight.mean(),
    )
    return (weight if perm is None else lam * weight + (1 - lam) * weight[perm]), stats


def mixup_loss(
    logits: Tensor, soft_label: Tensor, perm: Tensor, lam: float, weight: Tensor
) -> Tensor:
    """Weighted cross entropy of mixed images (DMT for classification).

    ``sum_i weight_i (lam CE(p_i, y_i) + (1 - lam) CE(p_i, y_perm(i))) / N`` with the hard labels
    ``y`` of the soft ones.

    Args:
        logits: Student logits of the mixed images, (N, C).
        soft_label: Class probabilities of the unmixed images, (N, C).
        perm: (N,) mixup partners.
        lam: Mixup's share of a sample itself, in [0, 1].
        weight: (N,), of :func:`mixup_weights`.

    Returns:
        Scalar loss.
    """
    log_prob, label = _log_softmax(logits), soft_label.argmax(dim=1)
    mixed = lam * _cross_entropy(logits, log_prob, label)
    mixed = mixed + (1 - lam) * _cross_entropy(logits, log_prob, label[perm])
    return (weight * mixed).sum() / max(1, len(logits))


# ------------------------------------------------------------------------- parts: mutual weights


class _Student(NamedTuple):
    """What the student says of each pixel, without gradient, each (N, *)."""

    label: Tensor  # most probable class
    confidence: Tensor  # its probability
    trust: Tensor  # probability of the target
    agrees: Tensor  # whether label and target are the same class


def _read_student(log_prob: Tensor, target: Tensor) -> _Student:
    top = log_prob.max(dim=1)
    trust = _of_class(log_prob, target).exp()
    return _Student(top.indices, top.values.exp(), trust, top.indices == target)


def _student_wins(student: _Student, confidence: Tensor) -> Tensor:
    """Where the student disagrees and is surer; a tie goes to the teacher."""
    return ~student.agrees & (student.confidence > confidence.to(student.confidence))


def _mutual_weight(student: _Student, student_wins: Tensor, gamma1: float, gamma2: float) -> Tensor:
    weight = torch.where(student.agrees, student.trust**gamma1, student.trust**gamma2)
    return weight.masked_fill(student_wins, 0.0)


def _agreement_stats(
    log_prob: Tensor, cross_entropy: Tensor, counted: Tensor, confidence: Optional[Tensor]
) -> Dict[str, Tensor]:
    """Counts of pixels on which the student disagrees, and is surer, where no weight needs them.

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


def _cross_entropy(logits: Tensor, log_prob: Tensor, target: Tensor) -> Tensor:
    """Cross entropy (N, *) of ``logits``, whose log-softmax is known."""
    return _CrossEntropy.apply(logits, log_prob, target)


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy whose gradient is made in place.

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


def _check_maps(logits: Tensor, **maps: Tensor) -> None:
    expected = (logits.shape[0], *logits.shape[2:])
    for name, value in maps.items():
        if tuple(value.shape) != expected:
            raise ValueError(
                f'`{name}` must be {expected} for `logits` of shape {tuple(logits.shape)}, '
                f'got {tuple(value.shape)}'
            )


def _check_is_pseudo(logits: Tensor, is_pseudo: Tensor) -> None:
    if is_pseudo.dtype != torch.bool or is_pseudo.shape != logits.shape[:1]:
        raise ValueError(
            f'`is_pseudo` must be a bool tensor of shape ({logits.shape[0]},), got '
            f'{is_pseudo.dtype} of shape {tuple(is_pseudo.shape)}'
        )


def _check_gammas(**gammas: float) -> None:
    for name, value in gammas.items():
        if value < 0:
            raise ValueError(f'`{name}` must be >= 0, got {value}')


# -------------------------------------------------------------------------------- parts: contrast


def _prepare_contrast(
    feat: Tensor, label: Tensor, mask: Tensor, bank: Tensor, filled: Optional[Tensor]
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit anchors (P, D), classes (P,), which anchors count (P,), unit bank (C, K, D)."""
    pixels = (feat.shape[0], *feat.shape[2:])
    if tuple(label.shape) != pixels or tuple(mask.shape) != pixels:
        raise ValueError(
            f'`label` and `mask` must be {pixels} for `feat` of shape {tuple(feat.shape)}, got '
            f'{tuple(label.shape)} and {tuple(mask.shape)}; resize them to the feature map'
        )
    if bank.ndim != 3 or bank.shape[0] < 2 or bank.shape[2] != feat.shape[1]:
        raise ValueError(
            f'`bank` must be (C, K, {feat.shape[1]}) with at least 2 classes, '
            f'got {tuple(bank.shape)}'
        )
    if filled is not None and (filled.dtype != torch.bool or filled.shape != bank.shape[:2]):
        raise ValueError(
            f'`filled` must be a bool tensor of shape {tuple(bank.shape[:2])}, got '
            f'{filled.dtype} of shape {tuple(filled.shape)}'
        )
    classes = label.reshape(-1).long()
    chosen = mask.reshape(-1).bool() & (classes >= 0) & (classes < bank.shape[0])
    anchors = F.normalize(_as_rows(feat), dim=1)
    bank = F.normalize(bank.detach().to(anchors), dim=2)
    return anchors, classes.masked_fill(~chosen, 0), chosen, bank


def _as_rows(feat: Tensor) -> Tensor:
    """(N, D, H, W) features as (N*H*W, D), in float32 or better."""
    feat = feat.float() if feat.dtype in (torch.float16, torch.bfloat16) else feat
    return feat.movedim(1, -1).reshape(-1, feat.shape[1])


def _similarities(anchor: Tensor, bank: Tensor, filled: Optional[Tensor]) -> Tensor:
    """Products of (P, D) anchors with a (C, K, D) bank: (P, C, K); very small if not filled."""
    with _full_precision(anchor.device.type):
        similarity = (anchor @ bank.flatten(0, 1).t()).unflatten(1, bank.shape[:2])
    # Finite, because a class of nothing but -inf would have no gradient.
    return similarity if filled is None else similarity.masked_fill(~filled, _NO_SIMILARITY)


def _mean_over_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked elements of each row of (P, K); 0 where there are none."""
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _full_precision(device_type: str) -> ContextManager:
    # Autocast would leave 8 or 11 bits of a similarity that is divided by a temperature of 0.1.
    if device_type in ('cpu', 'cuda'):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _log_sum_of_others(similarity: Tensor, cls: Tensor) -> Tensor:
    """Log of the summed exponentials over all classes but ``cls``: (P, C, K) -> (P,)."""
    per_class = similarity.logsumexp(dim=2)
    return per_class.scatter(1, cls[:, None], -math.inf).logsumexp(dim=1)


def _in_chunks(
    function: Callable[..., Tensor], rows: List[Tensor], similarities_per_row: int
) -> Tensor:
    """``function(*rows)`` for a slice of rows at a time, keeping nothing for the backward pass."""
    size = max(1, _MAX_SIMILARITIES // max(1, similarities_per_row))
    if len(rows[0]) <= size:
        return function(*rows)
    chunks = zip(*[tensor.split(size) for tensor in rows])
    return torch.cat(
        [
            checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
    )


def _mean_over_classes(losses: Tensor, classes: Tensor, chosen: Tensor, num_classes: int) -> Tensor:
    """Mean over the anchors of each class, then over the classes that have any."""
    counts = losses.new_zeros(num_classes).scatter_add(0, classes, chosen.to(losses))
    weight = chosen / counts.clamp(min=1)[classes]
    return (losses * weight).sum() / _count(counts > 0).clamp(min=1)
