"""CutMix and ClassMix on aligned tensors: masks, partners and the mixing itself.

One convention everywhere: a mask is True where image ``i`` keeps its own pixel and False where it
takes the pixel of its partner ``partner[i]``. Random numbers are drawn from torch's global CPU
generator; nothing is read back from the device of the tensors.
"""

import math
from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

PARTNERS = ('cycle', 'shuffle', 'flip')
BOXES = ('area', 'beta')


class Mixed(NamedTuple):
    """Result of :func:`cutmix` and :func:`classmix`.

    Attributes:
        tensors: The mixed tensors in the order they were given.
        mask: (N, H, W) bool, True where a pixel is the image's own.
        partner: (N,) long, index of the image that the other pixels come from.
    """

    tensors: Tuple[Tensor, ...]
    mask: Tensor
    partner: Tensor


def cutmix(
    tensors: Sequence[Tensor],
    prob: float = 0.5,
    boxes: str = 'area',
    area: Tuple[float, float] = (0.02, 0.4),
    aspect: Tuple[float, float] = (0.3, 1 / 0.3),
    beta: float = 4.0,
    partner: str = 'cycle',
) -> Mixed:
    """Paste a random box of each image's partner into it (CutMix).

    Args:
        tensors: Aligned tensors (N, H, W) or (N, C, H, W) of one device; see :func:`mix`.
        prob: Probability, per image, that a box is pasted.
        boxes: ``'area'`` or ``'beta'``, see :func:`cutmix_boxes`.
        area: Range of the box area as a share of the image (``boxes='area'``).
        aspect: Range of height over width of the box (``boxes='area'``).
        beta: Parameter of the Beta distribution (``boxes='beta'``).
        partner: How partners are found, see :func:`mix_partners`.

    Returns:
        Mixed tensors, mask and partners.
    """
    num, height, width = _common_shape(tensors)
    box = cutmix_boxes(num, (height, width), boxes, area, aspect, beta)
    applied = torch.rand(num, device='cpu') < prob
    index = mix_partners(num, partner)
    # An empty box leaves the image as it is.
    box = torch.where(applied[:, None], box, torch.zeros_like(box))
    device = tensors[0].device
    mask = cutmix_mask(box.to(device, non_blocking=True), (height, width))
    return _mixed(mask, index.to(device, non_blocking=True), tensors)


def classmix(
    tensors: Sequence[Tensor],
    label: Tensor,
    prob: float = 1.0,
    num_classes: int = 256,
    valid: Optional[Tensor] = None,
    ignore_index: int = 255,
    round_up: bool = False,
    partner: str = 'cycle',
) -> Mixed:
    """Paste half of the classes of each image onto its partner (ClassMix).

    Args:
        tensors: Aligned tensors (N, H, W) or (N, C, H, W) of one device; see :func:`mix`.
        label: (N, H, W) labels that decide the mask. They are only read: to mix them as well,
            list them among ``tensors``.
        prob: Probability, per image, of mixing; an image that is not mixed stays as it is.
        num_classes: Upper bound of the labels, see :func:`classmix_mask`.
        valid: (N, H, W) bool, False on padding, which is never kept as a class.
        ignore_index: Label that is no class.
        round_up: Keep the larger half of an odd number of classes.
        partner: How partners are found, see :func:`mix_partners`.

    Returns:
        Mixed tensors, mask and partners.
    """
    shape = _common_shape((*tensors, label))
    own = classmix_mask(label, num_classes, valid, ignore_index, round_up)
    applied = torch.rand(shape[0], device='cpu') < prob
    index = mix_partners(shape[0], partner)
    device = label.device
    mask = own | ~applied.to(device, non_blocking=True).view(-1, 1, 1)
    return _mixed(mask, index.to(device, non_blocking=True), tensors)


def mix(mask: Tensor, partner: Tensor, *tensors: Tensor) -> Tuple[Tensor, ...]:
    """Mix aligned tensors: ``out[i] = tensor[i]`` where the mask is True, else the partner's.

    Pixels are copied, never blended, so images, labels, confidence and validity stay aligned
    and bit-equal to their source.

    Args:
        mask: (N, H, W) bool.
        partner: (N,) long.
        *tensors: Tensors (N, H, W) or (N, C, H, W) of any type.

    Returns:
        The mixed tensors in the order given.

    Raises:
        ValueError: If a tensor does not fit the mask.
    """
    if _common_shape(tensors) != tuple(mask.shape):
        raise ValueError(
            f'mix: mask {tuple(mask.shape)} does not fit tensors {tuple(tensors[0].shape)}'
        )
    mixed = []
    for tensor in tensors:
        own = mask if tensor.ndim == 3 else mask[:, None]
        mixed.append(torch.where(own, tensor, tensor.index_select(0, partner)))
    return tuple(mixed)


def mix_partners(num_images: int, mode: str = 'cycle') -> Tensor:
    """Choose for each image of a batch the one it is mixed with.

    A batch of one image can only be mixed with itself, which leaves it as it is.

    Args:
        num_images: Batch size N.
        mode: ``'cycle'``: the images in random order, each with the next one, so that no image
            meets itself and each is used once. ``'shuffle'``: a random permutation, in which an
            image may meet itself (Dual Teacher, CTT). ``'flip'``: the batch reversed (UniMatch
            V2), in which the middle image of an odd batch meets itself.

    Returns:
        (N,) long permutation on the CPU.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode not in PARTNERS:
        raise ValueError(f'mix_partners: unknown partner={mode!r}; use one of {PARTNERS}')
    if mode == 'flip':
        return torch.arange(num_images, device='cpu').flip(0)
    order = torch.randperm(num_images, device='cpu')
    if mode == 'shuffle':
        return order
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def cutmix_boxes(
    num_images: int,
    size: Tuple[int, int],
    boxes: str = 'area',
    area: Tuple[float, float] = (0.02, 0.4),
    aspect: Tuple[float, float] = (0.3, 1 / 0.3),
    beta: float = 4.0,
) -> Tensor:
    """Draw one box per image.

    Args:
        num_images: Batch size N.
        size: Height and width of the images in pixels.
        boxes: ``'area'`` draws as UniMatch does: area share from U(``area``), height over width
            from U(``aspect``), position uniform, among the boxes that fit into the image.
            ``'beta'`` draws as Dual Teacher does: sides of ``sqrt(1 - l)`` of the image's,
            l from Beta(``beta``, ``beta``), center from [1/8, 1) of each side, clipped.
        area: Range of the box area as a share of the image.
        aspect: Range of height over width.
        beta: Both parameters of the Beta distribution.

    Returns:
        (N, 4) long on the CPU: top, left, bottom, right; the last two are exclusive.

    Raises:
        ValueError: If the kind is unknown, or no box of this area and aspect fits.
    """
    if boxes not in BOXES:
        raise ValueError(f'cutmix_boxes: unknown boxes={boxes!r}; use one of {BOXES}')
    if boxes == 'beta':
        return _beta_boxes(num_images, size, beta)
    return _area_boxes(num_images, size, area, aspect)


def cutmix_mask(boxes: Tensor, size: Tuple[int, int]) -> Tensor:
    """Turn boxes into a mask.

    Args:
        boxes: (N, 4) long: top, left, bottom, right; the last two are exclusive.
        size: Height and width of the images in pixels.

    Returns:
        (N, H, W) bool, False inside the box (there the partner is pasted).
    """
    top, left, bottom, right = (side[:, None] for side in boxes.unbind(1))
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return ~(inside_rows[:, :, None] & inside_columns[:, None, :])


def classmix_mask(
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

    Returns:
        (N, H, W) bool, True on the pixels of the chosen classes.
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


def _area_boxes(
    num_images: int,
    size: Tuple[int, int],
    area: Tuple[float, float],
    aspect: Tuple[float, float],
) -> Tensor:
    """Sample UniMatch's accepted boxes without its rejection loop.

    A box of width w and height h at a uniform position fits with a probability proportional to
    (1 - w/W)(1 - h/H); the aspect is drawn with this weight, then a position among those that
    fit, which is the same distribution with a fixed number of draws.
    """
    height, width = size
    uniform = torch.rand(num_images, 3, device='cpu')
    pixels = (area[0] + (area[1] - area[0]) * uniform[:, :1]) * height * width
    ratio = torch.linspace(aspect[0], aspect[1], 256, device='cpu')
    box_height, box_width = (pixels * ratio).sqrt(), (pixels / ratio).sqrt()
    fits = (1 - box_height / height).clamp(min=0) * (1 - box_width / width).clamp(min=0)
    if not (fits.sum(1) > 0).all():
        raise ValueError(
            f'cutmix_boxes: no box of area={tuple(area)} and aspect={tuple(aspect)} fits into '
            f'images of {height}x{width}; lower the area or widen the aspect'
        )
    chosen = torch.multinomial(fits, 1) if num_images else fits[:, :1].long()
    sides = torch.cat([box_height.gather(1, chosen), box_width.gather(1, chosen)], dim=1).long()
    free = torch.tensor(size, device='cpu') - sides
    start = (uniform[:, 1:] * (free + 1)).long().minimum(free)
    return torch.cat([start, start + sides], dim=1)


def _beta_boxes(num_images: int, size: Tuple[int, int], beta: float) -> Tensor:
    share = torch.distributions.Beta(beta, beta).sample((num_images, 1))
    limit = torch.tensor(size, device='cpu')
    sides = (limit * (1 - share).sqrt()).long()
    low = limit // 8
    center = low + (torch.rand(num_images, 2, device='cpu') * (limit - low)).long()
    start = (center - sides // 2).clamp(min=0)
    return torch.cat([start, (center + sides // 2).minimum(limit)], dim=1)


def _mixed(mask: Tensor, partner: Tensor, tensors: Sequence[Tensor]) -> Mixed:
    return Mixed(mix(mask, partner, *tensors), mask, partner)


def _common_shape(tensors: Sequence[Tensor]) -> Tuple[int, int, int]:
    """Return (N, H, W) of aligned tensors."""
    if not tensors:
        raise ValueError('mixing needs at least one tensor')
    shapes = [tuple(tensor.shape) for tensor in tensors]
    common = {(shape[0], *shape[-2:]) for shape in shapes if len(shape) in (3, 4)}
    if len(common) != 1 or any(len(shape) not in (3, 4) for shape in shapes):
        raise ValueError(
            f'tensors to mix must be (N, H, W) or (N, C, H, W) of one N, H, W; got {shapes}'
        )
    return common.pop()
