"""Masks of the pixels that an image keeps; the others it takes from its partner.

One convention everywhere: a mask is True where an image keeps its own pixel and False where it
takes the pixel of its partner. Random numbers are drawn from torch's global CPU generator; nothing
is read back from the device of the tensors.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

Size = Tuple[int, int]


def box_mask(boxes: Tensor, size: Size) -> Tensor:
    """Turn boxes into a mask; where boxes of an image overlap an even number of times, it is kept.

    Args:
        boxes: (N, n, 4) long: top, left, bottom, right of n boxes per image; the last two are
            exclusive. Empty boxes change nothing.
        size: Height and width of the images in pixels.
    """
    top, left, bottom, right = (side[..., None] for side in boxes.unbind(2))
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    inside = inside_rows[..., None] & inside_columns[:, :, None]
    return ~reduce(torch.logical_xor, inside.unbind(1))


def class_mask(
    label: Tensor,
    num_classes: int = 256,
    valid: Optional[Tensor] = None,
    ignore_index: int = 255,
    round_up: bool = False,
) -> Tensor:
    """Choose half of the classes present in each image at random.

    Args:
        label: (N, H, W) integer labels.
        num_classes: Labels from 0 to this (exclusive) are classes. It only has to be large
            enough: a bound above the real number of classes changes nothing but the draws.
        valid: (N, H, W) bool; pixels where it is False count for no class and are not chosen.
        ignore_index: Label that is no class and is not chosen.
        round_up: Of an odd number of classes choose the larger half. The default is the smaller
            one, as published with ClassMix (WACV 2021): with a single class nothing is chosen.
    """
    label = label.long()  # a bound of 256 would wrap around in uint8
    is_class = (label >= 0) & (label < num_classes) & (label != ignore_index)
    if valid is not None:
        is_class &= valid
    # One more column than there are classes collects all pixels that count for none.
    column = torch.where(is_class, label, num_classes).flatten(1)
    present = torch.zeros(len(label), num_classes + 1, dtype=torch.bool, device=label.device)
    present.scatter_(1, column, True)
    present[:, num_classes] = False
    score = torch.rand(len(label), num_classes + 1, device='cpu')
    score = score.to(label.device, non_blocking=True).masked_fill(~present, math.inf)
    rank = score.argsort(dim=1).argsort(dim=1)
    half = (present.sum(1, keepdim=True) + int(round_up)) // 2
    return (rank < half).gather(1, column).view(label.shape)


def area_boxes(
    num_images: int,
    size: Size,
    area: Sequence[float] = (0.02, 0.4),
    aspect: Sequence[float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Boxes of UniMatch (CVPR 2023): area and aspect at random, anywhere inside.

    Its rejection loop is sampled without rejection: a box of width w and height h at a uniform
    position fits with a probability proportional to (1 - w/W)(1 - h/H); the aspect is drawn with
    this weight, then a position among those that fit.

    Args:
        num_images: Batch size N.
        size: Height and width of the images in pixels.
        area: Range of the box area as a share of the image.
        aspect: Range of height over width.

    Returns:
        (N, 1, 4) on the CPU, as :func:`box_mask` takes them.

    Raises:
        ValueError: If no box of this area and aspect fits.
    """
    height, width = size
    uniform = torch.rand(num_images, 3, device='cpu')
    pixels = (area[0] + (area[1] - area[0]) * uniform[:, :1]) * height * width
    ratio = torch.linspace(aspect[0], aspect[1], 256, device='cpu')
    box_height, box_width = (pixels * ratio).sqrt(), (pixels / ratio).sqrt()
    fits = (1 - box_height / height).clamp(min=0) * (1 - box_width / width).clamp(min=0)
    if not (fits.sum(1) > 0).all():
        raise ValueError(
            f'CutMix: no box of area={tuple(area)} and aspect={tuple(aspect)} fits into '
            f'images of {height}x{width}; lower the area or widen the aspect'
        )
    chosen = torch.multinomial(fits, 1) if num_images else fits[:, :1].long()
    sides = torch.cat([box_height.gather(1, chosen), box_width.gather(1, chosen)], dim=1).long()
    return _anywhere(sides, size, uniform[:, 1:])[:, None]


def beta_boxes(num_images: int, size: Size, alpha: float = 4.0, beta: float = 4.0) -> Tensor:
    """Boxes of Dual Teacher (NeurIPS 2023) and AugSeg (CVPR 2023): sides from a Beta distribution.

    Sides of ``sqrt(1 - l)`` of the image's, with one l for the batch, from Beta(``alpha``,
    ``beta``); center from [1/8, 1) of each side for each image, clipped. Returns (N, 1, 4).
    """
    drawn = (1 - torch.distributions.Beta(alpha, beta).sample((1,))).sqrt()
    return _around_centers(drawn.expand(num_images)[:, None], size, low=8)


def share_boxes(num_images: int, size: Size, share: Sequence[float] = (0.1, 0.9)) -> Tensor:
    """Boxes of iMAS (CVPR 2023): one share of the sides for the batch, U(``share``).

    Center from [1/16, 1) of each side, clipped. Returns (N, 1, 4).
    """
    drawn = share[0] + (share[1] - share[0]) * torch.rand(1, device='cpu')
    return _around_centers(drawn.expand(num_images)[:, None], size, low=16)


def half_boxes(num_images: int, size: Size) -> Tensor:
    """Boxes of U2PL (CVPR 2022): half of the area, a width between half and all of the image's.

    Returns (N, 1, 4).
    """
    height, width = size
    uniform = torch.rand(num_images, 3, device='cpu')
    least = width // 2 + 1
    box_width = least + (uniform[:, :1] * max(1, width - least)).long()
    box_height = (height * width / 2 / box_width).round().long()
    return _anywhere(torch.cat([box_height, box_width], dim=1), size, uniform[:, 1:])[:, None]


def french_boxes(
    num_images: int, size: Size, count: int = 3, area: Sequence[float] = (0.25, 0.5)
) -> Tensor:
    """Boxes of CutMix-Seg (BMVC 2020, one of half the area) and CPS (CVPR 2021, three).

    The area share a is drawn from U(``area``), the height share of each box is ``a ** u`` with u
    from U(0, 1), its width share ``a`` over that, both times ``sqrt(1 / count)``; where boxes
    overlap they cancel. Returns (N, count, 4).
    """
    uniform = torch.rand(num_images, count, 4, device='cpu')
    share = area[0] + (area[1] - area[0]) * uniform[..., 0]
    tall = share ** uniform[..., 1]
    sides = torch.stack([tall, share / tall], dim=2) * math.sqrt(1 / count)
    sides = (sides * torch.tensor(size, device='cpu')).round().long()
    return _anywhere(sides, size, uniform[..., 2:])


def _anywhere(sides: Tensor, size: Size, uniform: Tensor) -> Tensor:
    """Boxes (..., 4) of (..., 2) sides at a uniform position inside the image."""
    free = torch.tensor(size, device='cpu') - sides
    start = (uniform * (free + 1)).long().minimum(free)
    return torch.cat([start, start + sides], dim=-1)


def _around_centers(share: Tensor, size: Size, low: int) -> Tensor:
    """Boxes (N, 1, 4) of (N, 1) side shares around centers in [1/low, 1) of each side, clipped."""
    limit = torch.tensor(size, device='cpu')
    sides = (limit * share).long()
    first = limit // low
    center = first + (torch.rand(len(share), 2, device='cpu') * (limit - first)).long()
    start = (center - sides // 2).clamp(min=0)
    return torch.cat([start, (center + sides // 2).minimum(limit)], dim=1)[:, None]


#: Box generators by the name that ``mmdmt.CutMix`` knows them by; called with (N, size, ...).
BOXES: Dict[str, Callable[..., Tensor]] = dict(
    area=area_boxes, beta=beta_boxes, share=share_boxes, half=half_boxes, french=french_boxes
)
