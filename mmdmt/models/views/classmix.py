"""ClassMix as a module, so that a config can choose it."""

from typing import Optional

from torch import Tensor, nn

from mmdmt.models.views.mix import PARTNERS, Mixed, classmix
from mmdmt.registry import MODELS


@MODELS.register_module()
class ClassMix(nn.Module):
    """Paste half of the (predicted) classes of each image onto a partner image.

    Args:
        prob: Probability, per image, of mixing.
        num_classes: Upper bound of the labels; it only has to be large enough.
        ignore_index: Label that is no class.
        round_up: Keep the larger half of an odd number of classes. The published code keeps the
            smaller one.
        partner: ``'cycle'``, ``'shuffle'`` or ``'flip'``, see
            :func:`~mmdmt.models.views.mix.mix_partners`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    def __init__(
        self,
        prob: float = 1.0,
        num_classes: int = 256,
        ignore_index: int = 255,
        round_up: bool = False,
        partner: str = 'cycle',
    ) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f'ClassMix: prob={prob} is not in [0, 1]')
        if num_classes < 1:
            raise ValueError(f'ClassMix: num_classes={num_classes} must be positive')
        if partner not in PARTNERS:
            raise ValueError(f'ClassMix: unknown partner={partner!r}; use one of {PARTNERS}')
        self.settings = dict(
            prob=prob,
            num_classes=num_classes,
            ignore_index=ignore_index,
            round_up=round_up,
            partner=partner,
        )

    def forward(
        self, *tensors: Tensor, label: Optional[Tensor] = None, valid: Optional[Tensor] = None
    ) -> Mixed:
        """Mix aligned tensors.

        Args:
            *tensors: Tensors (N, H, W) or (N, C, H, W) to mix: images, labels, confidence,
                validity.
            label: (N, H, W) labels whose classes decide the mask. They are only read: to mix
                them as well, list them among ``tensors``.
            valid: (N, H, W) bool, False on padding, which counts for no class. Only read, too.

        Returns:
            Mixed tensors, mask and partners.

        Raises:
            ValueError: If ``label`` is missing.
        """
        if label is None:
            raise ValueError('ClassMix needs label=: (N, H, W) labels that decide the mask')
        return classmix(tensors, label, valid=valid, **self.settings)

    def extra_repr(self) -> str:
        """Settings as shown by ``print(module)``."""
        return ', '.join(f'{key}={value!r}' for key, value in self.settings.items())
