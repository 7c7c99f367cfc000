"""Which image of a batch each image is mixed with."""

import torch
from torch import Tensor

from mmdmt.checks import check_choice

PARTNERS = ('cycle', 'next', 'flip', 'shuffle', 'same')


def mix_partners(num_images: int, mode: str = 'cycle') -> Tensor:
    """Choose for each image of a batch the one it is mixed with.

    A batch of one image can only be mixed with itself, which leaves it as it is.

    Args:
        num_images: Batch size N.
        mode: ``'cycle'``: the images in random order, each with the next one, so that no image
            meets itself and each is used once. ``'next'``: image i with i + 1, the last with the
            first (U2PL). ``'flip'``: the batch reversed (UniMatch V2), in which the middle image
            of an odd batch meets itself. ``'shuffle'``: a random permutation, in which some images
            may meet themselves, but never all: where it would leave every image in its place, each
            meets the next one, so that two images always swap (Dual Teacher). ``'same'``: each
            with itself, for methods that mix two augmentations of an image.

    Returns:
        (N,) long permutation on the CPU.
    """
    check_choice('partner', mode, PARTNERS)
    ordered = torch.arange(num_images, device='cpu')
    if mode == 'same':
        return ordered
    if mode == 'next':
        return ordered.roll(-1)
    if mode == 'flip':
        return ordered.flip(0)
    order = torch.randperm(num_images, device='cpu')
    if mode == 'shuffle':
        return ordered.roll(-1) if torch.equal(order, ordered) else order
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
