"""Which pixels take part in a contrastive loss."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def sample_anchors(
    label: Tensor, mask: Tensor, num_classes: int, per_class: int
) -> Tuple[Tensor, Tensor]:
    """Draw at most ``per_class`` pixels of each class at random.

    One sort instead of a loop over the classes: sizes are known beforehand, so nothing waits for
    the device.

    Args:
        label: Classes of the pixels, of any shape. Labels outside 0..C-1 are never drawn.
        mask: Bool, of the same shape, True on pixels that may be drawn.
        num_classes: Number of classes C.
        per_class: Pixels per class at most, k.

    Returns:
        Flat indices (C*k,) of pixels, and which of them (C*k,) are real; the others are padding
        (index 0). Slots ``c*k .. c*k+k-1`` belong to class c.
    """
    label = label.reshape(-1).long()
    drawable = mask.reshape(-1) & (label >= 0) & (label < num_classes)
    label = label.masked_fill(~drawable, num_classes)
    # Random order within a class, classes one after another. Two sorts keep ties apart: class and
    # random number in one float would leave few bits for the latter.
    shuffled = torch.rand(len(label), device=label.device).argsort()
    order = shuffled[label[shuffled].argsort(stable=True)]
    ordered = label[order]
    counts = torch.zeros(num_classes + 1, dtype=torch.long, device=label.device)
    counts.scatter_add_(0, label, torch.ones_like(label))
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(label), device=label.device) - first[ordered]
    # What is not drawn goes to one slot behind the others.
    drawn = (rank < per_class) & (ordered < num_classes)
    slot = torch.where(drawn, ordered * per_class + rank, num_classes * per_class)
    index = label.new_zeros(num_classes * per_class + 1).scatter_(0, slot, order)[:-1]
    wanted = torch.arange(per_class, device=label.device) < counts[:-1, None]
    return index.masked_fill(~wanted.flatten(), 0), wanted.flatten()


def gather_pixels(maps: Tensor, index: Tensor) -> Tensor:
    """Rows (A, D) of (N, D, H, W) maps at flat pixel indices (A,) in the order N, H, W.

    Only the rows are copied, never the maps.
    """
    area = maps.shape[2] * maps.shape[3]
    return maps.flatten(2)[index // area, :, index % area]


def resize_nearest(maps: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resize (N, H, W) labels or masks without inventing values."""
    resized = F.interpolate(maps[:, None].float(), size=tuple(size), mode='nearest')
    return resized.squeeze(1).to(maps.dtype)
