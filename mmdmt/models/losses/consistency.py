"""Consistency with a teacher's labels, and the health values that every online method logs."""

from collections.abc import Sequence
from typing import Callable, Dict, Tuple, Union

import torch
from torch import Tensor

from mmdmt.models.forward import Targets

from .functional import masked_cross_entropy


def consistency_loss(
    logits: Tensor,
    targets: Targets,
    threshold: Union[float, Tensor],
    normalizer: str = 'valid',
    prefix: str = 'unsup',
    loss_of: Callable = masked_cross_entropy,
) -> Tuple[Tensor, Dict[str, Tensor]]:
    """:func:`.masked_cross_entropy` of a student, with statistics under the names of all methods.

    ``loss_of`` is another loss with its arguments, such as :class:`.UnsupervisedLoss`.

    These are ``<prefix>_keep_ratio`` (share of valid pixels that are learned),
    ``<prefix>_agreement`` and ``<prefix>_confidence``, see :func:`agreement_stats`.
    """
    loss, stats = loss_of(logits, *targets[:2], threshold, targets.valid, normalizer)
    found = {f'{prefix}_{name}': value for name, value in stats.items()}
    return loss, dict(found, **agreement_stats(logits, targets, prefix))


def mean_over_views(
    logits: Sequence[Tensor],
    targets: Sequence[Targets],
    threshold: Union[float, Tensor],
    normalizer: str = 'valid',
    loss_of: Callable = masked_cross_entropy,
) -> Tuple[Tensor, Dict[str, Tensor]]:
    """Mean :func:`consistency_loss` of several views of the same images, and mean statistics."""
    found = [
        consistency_loss(*pair, threshold, normalizer, loss_of=loss_of)
        for pair in zip(logits, targets)
    ]
    losses, stats = zip(*found)
    means = {key: sum(each[key] for each in stats) / len(stats) for key in stats[0]}
    return sum(losses) / len(losses), means


@torch.no_grad()
def agreement_stats(logits: Tensor, targets: Targets, prefix: str = 'unsup') -> Dict[str, Tensor]:
    """How student and teacher relate on valid pixels.

    Returns:
        ``<prefix>_agreement``, the share on which both predict the same class, and
        ``<prefix>_confidence``, the mean confidence of the teacher.
    """
    label, confidence, valid = targets
    count = valid.sum().clamp(min=1)
    predicted = logits.max(dim=1).indices  # on CPUs several times faster than argmax
    return {
        f'{prefix}_agreement': ((predicted == label) & valid).sum() / count,
        f'{prefix}_confidence': (confidence * valid).sum() / count,
    }
