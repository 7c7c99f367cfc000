"""The mixed view of a teacher's shift."""

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range
from mmdmt.models.forward import Targets
from mmdmt.registry import MODELS


class Shift(nn.Module):
    """What a teacher's time on duty looks like: the mixed view and the weight of its loss.

    Args:
        mix (dict, optional): Config of a mixing view, such as ``dict(type='mmdmt.CutMix')``.
        view (str): What is mixed: the 'weak' or the 'strong' (default) view.
        strong (dict, optional): Config of an augmentation of the mixed images.
        flip_prob (float): Probability, per mixed image, of a horizontal flip. Defaults to 0.
        per_image (bool): Whether each image is weighted by its own share of confident pixels
            instead of the batch's. Defaults to False.
    """

    def __init__(
        self,
        mix: Optional[dict] = None,
        view: str = 'strong',
        strong: Optional[dict] = None,
        flip_prob: float = 0.0,
        per_image: bool = False,
    ) -> None:
        super().__init__()
        check_choice('shifts.view', view, ('weak', 'strong'))
        check_range('shifts.flip_prob', flip_prob, 0, 1)
        self.mix = MODELS.build(mix) if mix else None
        self.view = view
        self.strong = MODELS.build(strong) if strong else None
        self.flip_prob = flip_prob
        self.per_image = per_image

    def forward(self, rgb: Tensor, targets: Targets, padded: bool) -> Tuple[Tensor, Targets]:
        """Mix, augment and flip images (N, 3, H, W) in [0, 1], and the targets on their pixels.

        ``padded``: whether any image has padding, which costs the augmentation more.
        """
        if self.mix is not None:
            rgb, targets = self.mix(rgb, targets)
        if self.strong is not None:
            rgb = self.strong(rgb, targets.valid if padded else None)
        if self.flip_prob:
            rgb, *flipped = _flip(self.flip_prob, rgb, *targets)
            targets = Targets(*flipped)
        return rgb, targets


def _flip(prob: float, *tensors: Tensor) -> List[Tensor]:
    """Flip the same random images of aligned (N, *, W) tensors from left to right."""
    chosen = torch.rand(len(tensors[0]), device='cpu') < prob
    chosen = chosen.to(tensors[0].device, non_blocking=True)
    return [
        torch.where(chosen.view(-1, *[1] * (tensor.ndim - 1)), tensor.flip(-1), tensor)
        for tensor in tensors
    ]
