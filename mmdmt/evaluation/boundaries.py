"""What lies near a boundary between classes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdmt.checks import check_count


def near_boundary(label: Tensor, distance: int, frame: bool = False) -> Tensor:
    """Pixels that have another label, or whatever is beyond the image, within a distance.

    Distances are those of a square: d steps with a structuring element of 3x3.

    Args:
        label: (H, W) classes; ``ignore_index`` is one more of them.
        distance: In pixels, at least 1.
        frame: Whether the frame of the image is a boundary, too.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: If ``distance`` is not positive.
    """
    check_count('distance', distance, 1)
    band = _change_within(label, distance, 1) | _change_within(label, distance, 0)
    if frame:
        for side in (band, band.T):
            side[:distance] = True
            side[-distance:] = True
    return band


def _change_within(label: Tensor, distance: int, dim: int) -> Tensor:
    """Whether two neighbors along ``dim``, in the square around a pixel, differ.

    Where no neighbors in the square differ, it is of one label. The changes are counted by sums up
    to each pixel, so that the cost does not grow with the distance.
    """
    length = label.size(dim) - 1
    changes = label.narrow(dim, 1, length) != label.narrow(dim, 0, length)
    for axis, last in ((dim, 0), (1 - dim, 1)):
        at = torch.arange(label.size(axis), device=label.device)
        ends = (at + distance + last, at - distance)
        upto = changes.cumsum(axis, dtype=torch.int32)
        upto = F.pad(upto, (1, 0) if axis == 1 else (0, 0, 1, 0))
        high, low = (upto.index_select(axis, end.clamp(0, changes.size(axis))) for end in ends)
        changes = high != low
    return changes


def boundary_areas(
    pred: Tensor, label: Tensor, num_classes: int, ratio: float = 0.02, ignore_index: int = 255
) -> Tensor:
    """Areas of boundary IoU of an image.

    Cheng et al., "Boundary IoU: improving object-centric image segmentation evaluation", CVPR
    2021: of each mask, here that of a class, the pixels count that are no further from its contour
    than a distance; the frame of the image is a contour. That is the mask minus its erosion by d
    steps of 3x3. Pixels without a true class are cut out of both masks.

    Args:
        pred: (H, W) long, predicted classes.
        label: (H, W) long, true classes or ``ignore_index``.
        num_classes: Number of classes C.
        ratio: The distance as a share of the diagonal of the image; 0.02 in the paper. It is at
            least one pixel.
        ignore_index: Label of pixels without a class.

    Returns:
        (C, 3) double: pixels in the band of the prediction, of the truth, and in both with the
        same class; see :func:`~mmdmt.evaluation.calibration.mean_iou`.
    """
    distance = max(1, round(ratio * math.hypot(*label.shape)))
    pred = pred.masked_fill(label == ignore_index, ignore_index)
    known = label != ignore_index
    bands = [near_boundary(each, distance, frame=True) & known for each in (pred, label)]
    chosen = (pred[bands[0]], label[bands[1]], label[bands[0] & bands[1] & (pred == label)])
    areas = [torch.bincount(classes, minlength=num_classes) for classes in chosen]
    return torch.stack(areas, dim=-1).double()
