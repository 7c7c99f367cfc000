"""Dice and focal loss, of labeled pixels and of confident pseudo-labels alike."""

from collections.abc import Sequence
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch.nn.functional as F
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range, refuse_unknown_keys
from mmdmt.models.forward import two_logits
from mmdmt.registry import MODELS

from .functional import LossAndStats, kept_cross_entropy, kept_pixels


def dice_loss(logits: Tensor, label: Tensor, kept: Tensor, eps: float = 1.0) -> Tensor:
    """Soft Dice loss of the pixels that are kept, averaged over the classes among their labels.

    ``1 - (2 sum p t + eps) / (sum p + sum t + eps)`` for each class, with the softmax ``p`` and the
    one-hot label ``t`` summed over all kept pixels of the batch (Milletari et al., "V-Net", 3DV
    2016, with first powers). Without a kept pixel it is 0.

    Args:
        logits: (N, C, *); of one channel, that of the sigmoid of class 1.
        label: (N, *) integers. Not read on pixels that are not kept.
        kept: (N, *) bool.
        eps: Added to both sums.
    """
    logits = two_logits(logits).float()
    prob = logits.softmax(dim=1) * kept[:, None]
    target = F.one_hot(label.long().masked_fill(~kept, 0), logits.shape[1]).movedim(-1, 1)
    target = target.to(prob) * kept[:, None]
    sums = [values.transpose(0, 1).flatten(1).sum(1) for values in (prob * target, prob, target)]
    both, predicted, true = sums
    loss = 1 - (2 * both + eps) / (predicted + true + eps)
    present = true > 0
    return loss.masked_fill(~present, 0).sum() / present.sum().clamp(min=1)


def focal_loss(logits: Tensor, label: Tensor, kept: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of ``(1 - p)^gamma CE`` over the pixels that are kept, ``p`` the label's softmax.

    Lin et al., "Focal loss for dense object detection", ICCV 2017, without its class weight.
    Arguments are those of :func:`dice_loss`.
    """
    target = label.long().masked_fill(~kept, 0)
    cross_entropy = F.cross_entropy(two_logits(logits).float(), target, reduction='none')
    # A probability of 1 has no derivative of a power below 1.
    doubt = (1 - (-cross_entropy).exp()).clamp(min=1e-6)
    loss = (doubt**gamma * cross_entropy).masked_fill(~kept, 0)
    return loss.sum() / kept.sum().clamp(min=1)


class _RegionLoss(nn.Module):
    """A loss for ``loss_decode``; see its subclasses."""

    def __init__(
        self, function: Callable, loss_weight: float, loss_name: str, **options: float
    ) -> None:
        super().__init__()
        self.function, self.options = function, options
        self.loss_weight, self.loss_name = loss_weight, loss_name

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Optional[Tensor] = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Loss of logits (N, C, H, W) for labels (N, H, W), without ``ignore_index``.

        Raises:
            ValueError: If a pixel sampler gives weights.
        """
        if weight is not None:
            raise ValueError(f'{type(self).__name__} takes no pixel sampler: remove `sampler`')
        return self.loss_weight * self.function(
            pred, target, target != ignore_index, **self.options
        )


@MODELS.register_module()
class DiceLoss(_RegionLoss):
    """:func:`dice_loss` of labeled pixels, in the place of mmseg's ``DiceLoss``.

    That one counts what is predicted on ignored pixels, and with one channel it learns class 0.

    Args:
        loss_weight (float): Defaults to 1.
        eps (float): Defaults to 1.
        loss_name (str): Defaults to 'loss_dice'.
    """

    def __init__(
        self, loss_weight: float = 1.0, eps: float = 1.0, loss_name: str = 'loss_dice'
    ) -> None:
        super().__init__(dice_loss, loss_weight, loss_name, eps=eps)


@MODELS.register_module()
class FocalLoss(_RegionLoss):
    """:func:`focal_loss` of labeled pixels, in the place of mmseg's ``FocalLoss``.

    That one has other targets on a CPU than on a GPU.

    Args:
        loss_weight (float): Defaults to 1.
        gamma (float): Defaults to 2.
        loss_name (str): Defaults to 'loss_focal'.
    """

    def __init__(
        self, loss_weight: float = 1.0, gamma: float = 2.0, loss_name: str = 'loss_focal'
    ) -> None:
        super().__init__(focal_loss, loss_weight, loss_name, gamma=gamma)


#: Names of the terms of :class:`UnsupervisedLoss`: its own, and those of mmseg.
TERMS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    'ce': ('ce', ()),
    'CrossEntropyLoss': ('ce', ()),
    'dice': ('dice', ('eps',)),
    'DiceLoss': ('dice', ('eps',)),
    'focal': ('focal', ('gamma',)),
    'FocalLoss': ('focal', ('gamma',)),
}


class UnsupervisedLoss(nn.Module):
    """What is learned from confident pseudo-labels: cross entropy, Dice, focal, or a sum of them.

    Cross entropy is :func:`.masked_cross_entropy`. Dice and focal loss are taken over the kept
    pixels and multiplied by what its normalizer makes of a mean over them: the share of kept among
    valid ('valid') or all pixels ('all'), or all over kept pixels ('kept').

    Args:
        given (str | dict | list): 'ce', 'dice', 'focal'; or, as in ``loss_decode``, a dict or a
            list of dicts with ``type``, ``loss_weight`` and the options of the term, ``eps`` of
            Dice or ``gamma`` of focal.

    Raises:
        ValueError: A name or option is unknown, or a weight or option is negative.
    """

    def __init__(self, given: Union[str, dict, Sequence] = 'ce') -> None:
        super().__init__()
        given = given if isinstance(given, (list, tuple)) else [given]
        self.terms: List[Tuple[str, float, Dict[str, float]]] = []
        for term in given or ['']:
            options = dict(type=term) if isinstance(term, str) else dict(term)
            name = str(options.pop('type', '')).split('.')[-1]
            check_choice('unsup_loss', name, TERMS)
            kind, known = TERMS[name]
            refuse_unknown_keys(f'unsup_loss.{name}', options, ('loss_weight', *known))
            for key, value in options.items():
                check_range(f'unsup_loss.{name}.{key}', value, 0)
            self.terms.append((kind, options.pop('loss_weight', 1.0), options))

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        confidence: Tensor,
        threshold: Union[float, Tensor],
        valid: Tensor,
        normalizer: str = 'valid',
    ) -> LossAndStats:
        """Loss and ``keep_ratio``; arguments are those of :func:`.masked_cross_entropy`."""
        kept, divisor, stats = kept_pixels(confidence, threshold, valid, normalizer)
        total: Any = 0
        for kind, weight, options in self.terms:
            if kind == 'ce':
                loss = kept_cross_entropy(logits, label, kept)
            else:
                function = dice_loss if kind == 'dice' else focal_loss
                loss = function(logits, label, kept, **options) * kept.sum()
            total = total + weight * loss / divisor
        return total, stats
