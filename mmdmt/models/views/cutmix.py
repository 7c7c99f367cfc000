"""CutMix as a module, so that a config can choose it."""

from typing import Optional, Sequence

from torch import Tensor, nn

from mmdmt.models.views.mix import BOXES, PARTNERS, Mixed, cutmix
from mmdmt.registry import MODELS


@MODELS.register_module()
class CutMix(nn.Module):
    """Paste a random box of a partner image into each image.

    The defaults are those of UniMatch (one box per image, probability 0.5); Dual Teacher uses
    ``CutMix(prob=1, boxes='beta', partner='shuffle')``.

    Args:
        prob: Probability, per image, that a box is pasted.
        boxes: ``'area'`` or ``'beta'``, see :func:`~mmdmt.models.views.mix.cutmix_boxes`.
        area: Range of the box area as a share of the image (``boxes='area'``).
        aspect: Range of height over width of the box (``boxes='area'``).
        beta: Parameter of the Beta distribution (``boxes='beta'``).
        partner: ``'cycle'``, ``'shuffle'`` or ``'flip'``, see
            :func:`~mmdmt.models.views.mix.mix_partners`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    def __init__(
        self,
        prob: float = 0.5,
        boxes: str = 'area',
        area: Sequence[float] = (0.02, 0.4),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
        beta: float = 4.0,
        partner: str = 'cycle',
    ) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f'CutMix: prob={prob} is not in [0, 1]')
        if boxes not in BOXES:
            raise ValueError(f'CutMix: unknown boxes={boxes!r}; use one of {BOXES}')
        if partner not in PARTNERS:
            raise ValueError(f'CutMix: unknown partner={partner!r}; use one of {PARTNERS}')
        if not 0 < area[0] <= area[1] < 1:
            raise ValueError(f'CutMix: area={tuple(area)} must be 0 < low <= high < 1')
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f'CutMix: aspect={tuple(aspect)} must be 0 < low <= high')
        if beta <= 0:
            raise ValueError(f'CutMix: beta={beta} must be positive')
        self.settings = dict(
            prob=prob,
            boxes=boxes,
            area=tuple(area),
            aspect=tuple(aspect),
            beta=beta,
            partner=partner,
        )

    def forward(
        self, *tensors: Tensor, label: Optional[Tensor] = None, valid: Optional[Tensor] = None
    ) -> Mixed:
        """Mix aligned tensors.

        Args:
            *tensors: Tensors (N, H, W) or (N, C, H, W) to mix: images, labels, confidence,
                validity.
            label: Not used; taken so that CutMix and ClassMix are called alike.
            valid: Not used, as above. To carry a mask along, list it among ``tensors``.

        Returns:
            Mixed tensors, mask and partners.
        """
        return cutmix(tensors, **self.settings)

    def extra_repr(self) -> str:
        """Settings as shown by ``print(module)``."""
        return ', '.join(f'{key}={value!r}' for key, value in self.settings.items())
