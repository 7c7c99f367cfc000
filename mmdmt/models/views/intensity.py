"""Random-intensity augmentation of a whole batch on its own device."""

import math
from collections.abc import Sequence
from typing import Callable, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_count
from mmdmt.registry import MODELS

from .strong import adjust_contrast, blur, check_images, check_rgb_bands, on_colors

BLUR_KERNEL = 13  # three standard deviations of the largest blur to each side


def _identity(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    return images


def _autocontrast(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]."""
    low = images.masked_fill(weight == 0, 1).amin((2, 3), keepdim=True)
    high = images.masked_fill(weight == 0, 0).amax((2, 3), keepdim=True)
    stretched = (images - low) / (high - low).clamp(min=1e-6)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    """Equalize the histogram of 256 levels of each channel, as PIL does."""
    level = _levels(images).long().flatten(2)
    count = weight.long().expand_as(images).flatten(2)
    histogram = level.new_zeros(*level.shape[:2], 256).scatter_add_(2, level, count)
    last = 255 - (histogram > 0).flip(2).long().argmax(2, keepdim=True)
    step = (histogram.sum(2, keepdim=True) - histogram.gather(2, last)) // 255
    table = (histogram.cumsum(2) - histogram + step // 2) // step.clamp(min=1)
    equal = table.clamp(max=255).gather(2, level).view_as(images).to(images) / 255
    return torch.where(step[..., None] > 0, equal, images)


def _blur(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    return blur(images, amount, BLUR_KERNEL, weight[:, 0] > 0)


def _contrast(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    return adjust_contrast(images, _on(images, amount), weight[:, 0] > 0)


def _brightness(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    return adjust_brightness_accumulative(images, _on(images, amount))


def _color(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    return adjust_saturation_with_gray_subtraction(images, _on(images, amount))


def _sharpness(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    """Blend with a smoothed image; as in PIL, the outermost pixels stay."""
    smooth = (9 * F.avg_pool2d(images, 3, 1, 1) + 4 * images) / 13
    inner = F.avg_pool2d(weight, 3, 1, 1) > 1 - 1e-3  # all nine pixels are valid
    factor = _on(images, amount).view(-1, 1, 1, 1)
    return torch.where(inner, torch.lerp(smooth, images, factor), images)


def _posterize(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    """Keep the highest bits of the 8."""
    step = 2 ** (8 - _on(images, amount.floor().clamp(max=8)).view(-1, 1, 1, 1))
    return (_levels(images) / step).floor() * step / 255


def _solarize(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    """Invert the levels that reach a threshold."""
    threshold = _on(images, amount.floor()).view(-1, 1, 1, 1)
    return torch.where(_levels(images) < threshold, images, 1 - images)


def _hue(images: Tensor, amount: Tensor, weight: Tensor) -> Tensor:
    return adjust_hue(images, _on(images, amount * (2 * math.pi)))


def _levels(images: Tensor) -> Tensor:
    return (images * 255).round()


def _on(images: Tensor, amount: Tensor) -> Tensor:
    """Numbers of the CPU beside images, on their device and of their type."""
    return amount.to(images.device, images.dtype, non_blocking=True)


class Operation(NamedTuple):
    """What one operation does, and the range that its amount is drawn from, uniformly.

    Attributes:
        apply: Called with images (n, 3, H, W) in [0, 1], their amounts (n,) on the CPU, and
            weights (n, 1, H, W), 1 on valid pixels and 0 on padding, which must have no influence.
        low: Least amount.
        high: Largest amount. Where only whole numbers mean something, amounts are rounded down.
    """

    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0


#: The published operations of AugSeg (CVPR 2023) by name. Factors are as of PIL's ImageEnhance,
#: the hue is in turns, the blur in pixels.
OPERATIONS: Dict[str, Operation] = dict(
    identity=Operation(_identity),
    autocontrast=Operation(_autocontrast),
    equalize=Operation(_equalize),
    blur=Operation(_blur, 0.1, 2.0),
    contrast=Operation(_contrast, 0.05, 0.95),
    brightness=Operation(_brightness, 0.05, 0.95),
    color=Operation(_color, 0.05, 0.95),
    sharpness=Operation(_sharpness, 0.05, 0.95),
    posterize=Operation(_posterize, 4, 9),
    solarize=Operation(_solarize, 1, 257),
    hue=Operation(_hue, -0.5, 0.5),
)


class IntensityDraws(NamedTuple):
    """Random parameters of one call, all on the CPU.

    Attributes:
        chosen: (N, max_operations) long, index of the operation of each turn, -1 for none.
        share: (N, max_operations) in [0, 1), where in its range the amount lies.
    """

    chosen: Tensor
    share: Tensor


@MODELS.register_module()
class RandomIntensityAugment(nn.Module):
    """One to three random operations of random strength on each image (AugSeg, CVPR 2023).

    The number of operations, the operations (with replacement) and their amounts are drawn for each
    image; nothing has a fixed probability or magnitude. Draws come from torch's global CPU
    generator, and their number depends on the batch size alone. Each turn applies each operation
    to the images that drew it, as one batch; nothing is read back from the device. Images are not
    rounded to 256 levels between the operations, as PIL does.

    Args:
        max_operations (int): Largest number of operations on an image. Defaults to 3.
        operations (Sequence[str], optional): Names in :data:`OPERATIONS`. Defaults to all.
        rgb_bands (Sequence[int], optional): As of :class:`.StrongAugment`: 'color' and 'hue' act
            on these channels alone.
    """

    def __init__(
        self,
        max_operations: int = 3,
        operations: Optional[Sequence[str]] = None,
        rgb_bands: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.rgb_bands = check_rgb_bands('RandomIntensityAugment', rgb_bands)
        check_count('RandomIntensityAugment.max_operations', max_operations, 1)
        self.max_operations = max_operations
        self.operations = list(OPERATIONS if operations is None else operations)
        for name in self.operations or ['']:
            check_choice('RandomIntensityAugment.operations', name, OPERATIONS)

    @torch.no_grad()
    def forward(self, images: Tensor, valid: Optional[Tensor] = None) -> Tensor:
        """Augment float images (N, C, H, W) in [0, 1], on any device; RGB if C is 3.

        Pixels that are not ``valid`` (N, H, W), the padding, come back unchanged and have no
        influence on the others. ValueErrors name images and masks of another kind.
        """
        check_images(images, valid, 'RandomIntensityAugment', self.rgb_bands)
        draws = self.draw(len(images))
        weight = images.new_ones(()) if valid is None else valid[:, None].to(images.dtype)
        weight = weight.expand(len(images), 1, *images.shape[2:])
        out = images
        # Runners call the data preprocessor under autocast, which would blur in half precision.
        with torch.autocast(images.device.type, enabled=False):
            for chosen, share in zip(draws.chosen.t().tolist(), draws.share.unbind(1)):
                for index in sorted(set(chosen) - {-1}):
                    rows = [row for row, each in enumerate(chosen) if each == index]
                    out = self._operate(index, rows, share, out, weight)
        return out if valid is None else torch.where(valid[:, None], out, images)

    def draw(self, num_images: int) -> IntensityDraws:
        """Draw the parameters of one call: ``1 + 2 * max_operations`` numbers for each image."""
        most = self.max_operations
        uniform = torch.rand(num_images, 1 + 2 * most, device='cpu', dtype=torch.float32)
        count = 1 + (uniform[:, :1] * most).long()
        chosen = (uniform[:, 1 : 1 + most] * len(self.operations)).long()
        skipped = torch.arange(most, device='cpu') >= count
        return IntensityDraws(chosen.masked_fill(skipped, -1), uniform[:, 1 + most :])

    def _operate(
        self, index: int, rows: List[int], share: Tensor, images: Tensor, weight: Tensor
    ) -> Tensor:
        """Images of which some rows have gone through one operation."""
        operation = OPERATIONS[self.operations[index]]
        picked = torch.tensor(rows, device='cpu')
        amount = operation.low + (operation.high - operation.low) * share.index_select(0, picked)
        picked = picked.to(images.device, non_blocking=True)
        some, inside = images.index_select(0, picked), weight.index_select(0, picked)
        if self.operations[index] in ('color', 'hue'):
            changed = on_colors(operation.apply, some, self.rgb_bands, amount, inside)
        elif self.operations[index] == 'contrast':
            factor = _on(some, amount)
            changed = adjust_contrast(some, factor, inside[:, 0] > 0, self.rgb_bands)
        else:
            changed = operation.apply(some, amount, inside)
        return images.index_copy(0, picked, changed.clamp(0, 1))

    def extra_repr(self) -> str:
        """Settings as shown by ``print(module)``."""
        return f'max_operations={self.max_operations}, operations={self.operations}'
