"""CutMix."""

import inspect
import math
from typing import Any

from torch import Tensor

from mmdmt.checks import check_choice, check_range, refuse_unknown_keys
from mmdmt.models.forward import Targets
from mmdmt.registry import MODELS

from .masks import BOXES, box_mask
from .mix import MixView

# Options of the generators that are ranges, with their upper limit; others are positive numbers.
RANGES = dict(area=1, share=1, aspect=math.inf)


@MODELS.register_module()
class CutMix(MixView):
    """Paste a random box of a partner image into each image.

    The defaults are those of UniMatch; other methods use other boxes and partners, such as
    ``CutMix(prob=1, boxes='beta', partner='shuffle')`` (Dual Teacher) or
    ``CutMix(prob=1, boxes='french')`` (CPS).

    Args:
        prob (float): Probability, per image, that a box is pasted. Defaults to 0.5.
        boxes (str): Generator of the boxes, see :mod:`~mmdmt.models.views.masks`: 'area'
            (UniMatch), 'beta' (Dual Teacher, AugSeg), 'share' (iMAS), 'half' (U2PL), 'french'
            (CutMix-Seg, CPS). Defaults to 'area'.
        partner (str): See :func:`~mmdmt.models.views.partners.mix_partners`. Defaults to 'cycle'.
        **options: Arguments of the generator, such as ``area=(0.02, 0.4)``.
    """

    def __init__(
        self, prob: float = 0.5, boxes: str = 'area', partner: str = 'cycle', **options: Any
    ) -> None:
        super().__init__(prob, partner)
        check_choice('CutMix.boxes', boxes, BOXES)
        self.boxes = boxes
        self.options = options
        known = list(inspect.signature(BOXES[boxes]).parameters)[2:]
        refuse_unknown_keys('CutMix', options, ['prob', 'boxes', 'partner', *known])
        for name, value in options.items():
            _check_option(name, value)

    def mask(self, targets: Targets) -> Tensor:
        """Draw boxes, whatever the targets are."""
        count, *size = targets.label.shape
        boxes = BOXES[self.boxes](count, tuple(size), **self.options)
        return box_mask(boxes.to(targets.label.device, non_blocking=True), tuple(size))

    def extra_repr(self) -> str:
        """Settings as shown by ``print(module)``."""
        return f'prob={self.prob}, boxes={self.boxes!r}, partner={self.partner!r}, {self.options}'


def _check_option(name: str, value: Any) -> None:
    """Refuse a value that an option of a generator cannot have."""
    if name not in RANGES:
        return check_range(f'CutMix.{name}', value, 1e-6)
    if not (isinstance(value, (list, tuple)) and 0 < value[0] <= value[-1] <= RANGES[name]):
        raise ValueError(
            f'`CutMix.{name}` must be (low, high) with 0 < low <= high <= {RANGES[name]}, got '
            f'{value!r}'
        )
