"""Contrastive losses as pure functions of tensors.

- CTT: Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
  Neurocomputing 508, 2022 (arXiv 2209.01327).
- U2PL: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR
  2022 (arXiv 2203.03884).

Half-precision features are handled in float32. Nothing is read back to the host, so nothing waits
for the device.
"""

import contextlib
import math
from typing import ContextManager, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities (anchor, bank feature) held at a time: 64 MiB of float32; on a CPU what caches hold.
_MAX_SIMILARITIES = 1 << 24
_MAX_ON_CPU = 1 << 21
# Similarity of a bank row that holds nothing: its exponential is 0. Finite, because the largest of
# nothing but -inf could not be subtracted.
_NO_SIMILARITY = -1e4


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

    Memory is bounded: anchors are handled in chunks, and of each there is only its gradient left
    for the backward pass. On a GPU all pixels are computed and the mask is applied to the result,
    since gathering the anchors would make the host wait for the device; on a CPU they are gathered.

    Args:
        feat: Pixel features, (N, D, \*) with any number of spatial dimensions, also none.
        label: Their classes, (N, \*).
        mask: (N, \*) bool, True on anchors. Labels outside 0..C-1 are never anchors.
        bank: Features of every class, (C, K, D), C >= 2. No gradient flows into it.
        temperature: Scale of the similarities.
        filled: (C, K) bool, False on bank rows that hold no feature: these are neither positives
            nor negatives, and classes without any other row have no anchors. Defaults to all.

    Returns:
        Scalar loss; 0 where there are no anchors.

    Raises:
        ValueError: If shapes do not fit or the bank has a single class.
    """
    anchors, classes, chosen = _anchors(feat, label, mask, len(bank))
    bank = _unit_bank(bank, anchors, filled) / temperature
    if filled is not None:
        chosen &= filled.any(dim=1)[classes]

    anchors, classes, chosen = _compact(chosen, anchors, classes, chosen)
    losses = _losses_of_rows(anchors, classes, bank, filled)
    return _mean_over_classes(losses, classes, chosen, bank)


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
    pixel in ``peer_feat``, a tensor like ``feat`` into which no gradient flows; negatives are the
    bank features of other classes. CTT takes classes from the peer's prediction, and gives both
    networks' banks concatenated along K.
    """
    if peer_feat.shape != feat.shape:
        raise ValueError(
            f'`peer_feat` must have the shape of `feat`, {tuple(feat.shape)}, '
            f'got {tuple(peer_feat.shape)}'
        )
    anchors, classes, chosen = _anchors(feat, label, mask, len(bank))
    bank = _unit_bank(bank, anchors, filled) / temperature
    peers = _unit_rows(peer_feat.detach().to(anchors)) / temperature

    anchors, classes, peers, chosen = _compact(chosen, anchors, classes, peers, chosen)
    losses = _losses_of_rows(anchors, classes, bank, filled, peers)
    return _mean_over_classes(losses, classes, chosen, bank)


def negatives_contrast_loss(
    feat: Tensor,
    positive: Tensor,
    mask: Tensor,
    negatives: Tensor,
    chosen: Tensor,
    temperature: float = 0.5,
) -> Tensor:
    r"""InfoNCE of anchors with one positive and negatives of their own (U2PL).

    The cross entropy of telling the positive :math:`p` of an anchor :math:`f` from its negatives
    :math:`n`, with :math:`s` the cosine similarity over ``temperature``,

    .. math:: -\log \frac{e^{s(f, p)}}{e^{s(f, p)} + \sum_n e^{s(f, n)}},

    averaged over the anchors of a class, then over the classes that have anchors.

    Args:
        feat: Features of A possible anchors of each class, (C, A, D).
        positive: Of each class, (C, D). No gradient flows into it.
        mask: (C, A) bool, False on rows that are no anchors.
        negatives: Features that each class is to be told from, (C, P, D). No gradient either.
        chosen: (C, A, P) bool, True on the negatives of an anchor.
        temperature: Scale of the similarities.

    Returns:
        Scalar loss; 0 where there are no anchors.
    """
    feat = feat.float() if feat.dtype in (torch.float16, torch.bfloat16) else feat
    anchors, positive, negatives = (
        F.normalize(each, dim=-1)
        for each in (feat, positive.detach().to(feat), negatives.detach().to(feat))
    )
    with _full_precision(feat.device.type):
        pushed = (anchors @ negatives.transpose(1, 2)).masked_fill(~chosen, -math.inf)
        pulled = (anchors @ positive[:, :, None]).squeeze(2)
    losses = F.softplus((pushed / temperature).logsumexp(dim=2) - pulled / temperature)
    return _mean_over_rows(losses, mask).sum() / mask.any(dim=1).sum().clamp(min=1)


def class_means(rows: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Mean (C, D) of the rows (P, D) of each class; 0 for a class without any.

    Labels (P,) outside 0..C-1 belong to none.
    """
    members = torch.arange(num_classes, device=label.device)[:, None] == label
    with _full_precision(rows.device.type):
        sums = members.float() @ rows.float()
    return sums / members.sum(dim=1, keepdim=True).clamp(min=1)


def _anchors(
    feat: Tensor, label: Tensor, mask: Tensor, num_classes: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Unit anchors (P, D) in float32 or better, classes that may be gathered, which count."""
    pixels = (feat.shape[0], *feat.shape[2:])
    if tuple(label.shape) != pixels or tuple(mask.shape) != pixels:
        raise ValueError(
            f'`label` and `mask` must be {pixels} for `feat` of shape {tuple(feat.shape)}, got '
            f'{tuple(label.shape)} and {tuple(mask.shape)}; resize them to the feature map'
        )
    feat = feat.float() if feat.dtype in (torch.float16, torch.bfloat16) else feat
    classes = label.flatten()
    chosen = mask.flatten().bool() & (classes >= 0) & (classes < num_classes)
    return _unit_rows(feat), classes.long().masked_fill(~chosen, 0), chosen


def _compact(chosen: Tensor, *rows: Tensor) -> Tuple[Tensor, ...]:
    """The chosen rows, where finding them costs less than computing the others: on a CPU."""
    if chosen.device.type != 'cpu':
        return rows
    index = chosen.nonzero().squeeze(1)
    return tuple(each.index_select(0, index) for each in rows)


def _unit_rows(feat: Tensor) -> Tensor:
    """(N, D, *) features as rows (P, D) of length 1."""
    return F.normalize(feat.movedim(1, -1).reshape(-1, feat.shape[1]), dim=1)


def _unit_bank(bank: Tensor, anchors: Tensor, filled: Optional[Tensor]) -> Tensor:
    if bank.ndim != 3 or bank.shape[0] < 2 or bank.shape[2] != anchors.shape[1]:
        raise ValueError(
            f'`bank` must be (C, K, {anchors.shape[1]}) with at least 2 classes, '
            f'got {tuple(bank.shape)}'
        )
    if filled is not None and (filled.dtype != torch.bool or filled.shape != bank.shape[:2]):
        raise ValueError(
            f'`filled` must be a bool tensor of shape {tuple(bank.shape[:2])}, got '
            f'{filled.dtype} of shape {tuple(filled.shape)}'
        )
    return F.normalize(bank.detach().to(anchors), dim=2)


def _similarities(anchor: Tensor, bank: Tensor, filled: Optional[Tensor]) -> Tensor:
    """Products of (P, D) anchors with a (C, K, D) bank: (P, C, K); very small if not filled."""
    similarity = (anchor @ bank.flatten(0, 1).t()).unflatten(1, bank.shape[:2])
    return similarity if filled is None else similarity.masked_fill_(~filled, _NO_SIMILARITY)


def _full_precision(device_type: str) -> ContextManager:
    # Autocast would leave 8 or 11 bits of a similarity that is divided by a temperature of 0.1.
    if device_type in ('cpu', 'cuda'):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _losses_of_rows(
    anchors: Tensor,
    classes: Tensor,
    bank: Tensor,
    filled: Optional[Tensor],
    peers: Optional[Tensor] = None,
) -> Tensor:
    """Losses (P,) of unit anchors (P, D) whose positives are their class, or ``peers`` (P, D)."""
    with torch.no_grad(), _full_precision(anchors.device.type):
        limit = _MAX_SIMILARITIES if anchors.is_cuda else min(_MAX_SIMILARITIES, _MAX_ON_CPU)
        size = max(1, limit // max(1, bank.shape[0] * bank.shape[1]))
        rows = (anchors, classes) if peers is None else (anchors, classes, peers)
        chunks = zip(*(each.split(size) for each in rows))
        found = [_loss_and_gradient(bank, filled, *chunk) for chunk in chunks]
        losses, gradients = (torch.cat(each) for each in zip(*found))
    # The bank and the peers learn nothing, so that a row's gradient is known with its loss. What is
    # added has no value, but this gradient.
    return losses + ((anchors - anchors.detach()) * gradients).sum(dim=1)


def _loss_and_gradient(
    bank: Tensor,
    filled: Optional[Tensor],
    anchor: Tensor,
    cls: Tensor,
    peer: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Losses (P,) and gradients (P, D) of a chunk; what is as large as it is made once."""
    similarity = _similarities(anchor, bank, filled)
    own = cls[:, None, None].expand(-1, 1, similarity.shape[2])
    if peer is None:
        positive = similarity.gather(1, own).squeeze(1)
        share = torch.ones_like(positive) if filled is None else filled[cls].to(positive)
        share = share / share.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        positive = (anchor * peer).sum(dim=1, keepdim=True)
        share = torch.ones_like(positive)
    # Softmax over the other classes, in place.
    others = similarity.scatter_(1, own, -math.inf).flatten(1)
    largest = others.amax(dim=1, keepdim=True)
    total = others.sub_(largest).exp_().sum(dim=1, keepdim=True)
    distance = total.log() + largest - positive
    losses = (F.softplus(distance) * share).sum(dim=1)
    pull = distance.sigmoid() * share
    others.mul_(pull.sum(dim=1, keepdim=True) / total)
    if peer is not None:
        return losses, others @ bank.flatten(0, 1) - pull * peer
    similarity.scatter_(1, own, -pull[:, None])
    return losses, others @ bank.flatten(0, 1)


def _mean_over_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked elements of each row of (P, K); 0 where there are none."""
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _mean_over_classes(losses: Tensor, classes: Tensor, chosen: Tensor, bank: Tensor) -> Tensor:
    """Mean over the anchors of each class, then over the classes that have any."""
    counts = losses.new_zeros(len(bank)).scatter_add(0, classes, chosen.to(losses))
    weight = chosen / counts.clamp(min=1)[classes]
    return (losses * weight).sum() / (counts > 0).sum().clamp(min=1)
