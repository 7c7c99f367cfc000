"""Mixing of the images of a batch, together with what is to be learned on their pixels."""

import warnings
from abc import ABCMeta, abstractmethod
from typing import NamedTuple, Tuple

import torch
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range
from mmdmt.models.forward import Targets

from .partners import PARTNERS, mix_partners


class Mixing(NamedTuple):
    """What one draw of a mixing view does to any tensors of the batch.

    Attributes:
        mask: (N, H, W) bool, True where an image keeps its own pixel.
        partner: (N,) long, index of the image that the other pixels come from.
    """

    mask: Tensor
    partner: Tensor

    def __call__(self, *tensors: Tensor) -> Tuple[Tensor, ...]:
        """Mix aligned tensors (N, H, W) or (N, C, H, W) of any type.

        Pixels are copied, never blended, so images, labels, confidence and validity stay aligned
        and bit-equal to their source.

        Raises:
            ValueError: If a tensor does not fit the mask.
        """
        return tuple(self.between(tensor, tensor) for tensor in tensors)

    def targets(self, own: Targets, others: Targets) -> Targets:
        """Targets of the mixed images, where pixels of the partner have those of ``others``."""
        return Targets(*map(self.between, own, others))

    def between(self, tensor: Tensor, other: Tensor) -> Tensor:
        """``tensor`` (N, H, W) or (N, C, H, W) with the partner's pixels taken from ``other``."""
        shape = tuple(self.mask.shape)
        if tensor.ndim not in (3, 4) or (tensor.shape[0], *tensor.shape[-2:]) != shape:
            raise ValueError(
                f'tensors to mix must be (N, H, W) or (N, C, H, W) with (N, H, W) = {shape}, got '
                f'{tuple(tensor.shape)}'
            )
        own = self.mask if tensor.ndim == 3 else self.mask[:, None]
        return torch.where(own, tensor, other.index_select(0, self.partner))


class MixView(nn.Module, metaclass=ABCMeta):
    """Base of the mixing views: a mask, which subclasses draw, and partners.

    Args:
        prob (float): Probability, per image, of mixing; otherwise it stays as it is.
        partner (str): See :func:`~mmdmt.models.views.partners.mix_partners`.
    """

    def __init__(self, prob: float, partner: str) -> None:
        super().__init__()
        name = type(self).__name__
        check_range(f'{name}.prob', prob, 0, 1)
        check_choice(f'{name}.partner', partner, PARTNERS)
        self.prob = prob
        self.partner = partner

    @abstractmethod
    def mask(self, targets: Targets) -> Tensor:
        """Draw a mask (N, H, W) for all images, on their device."""

    def draw(self, targets: Targets) -> Mixing:
        """Draw how the images of these targets are mixed."""
        device, count = targets.label.device, len(targets.label)
        if count == 1 and self.prob and self.partner != 'same':
            name = type(self).__name__
            warnings.warn(  # Python shows it once
                f'{name} has a batch of one unlabeled image, which `{name}.partner`='
                f'{self.partner!r} mixes with itself, so that nothing is mixed: have at least 2 '
                'unlabeled images in the batch of each process (`batch_size`, `source_ratio`), or '
                'no mixing (`model.mix=None`)',
                stacklevel=2,
            )
        mask = self.mask(targets)
        applied = (torch.rand(count, device='cpu') < self.prob).to(device, non_blocking=True)
        partner = mix_partners(count, self.partner).to(device, non_blocking=True)
        return Mixing(mask | ~applied.view(-1, 1, 1), partner)

    def forward(self, images: Tensor, targets: Targets) -> Tuple[Tensor, Targets]:
        """Mix images (N, C, H, W) and their targets alike."""
        images, *mixed = self.draw(targets)(images, *targets)
        return images, Targets(*mixed)
