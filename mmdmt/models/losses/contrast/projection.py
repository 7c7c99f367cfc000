"""Projection head of contrastive losses."""

from typing import Optional

from torch import nn


def projection_head(in_channels: int, channels: int, hidden: Optional[int] = None) -> nn.Sequential:
    """Two linear layers that map pixel features into the space where they are compared.

    They work on rows (A, in_channels) of chosen pixels, so that their cost depends on the number of
    these and not on the size of the feature map. There is no normalization over the rows: which
    pixels are compared with which would otherwise change what they are. ``hidden`` channels in
    between default to ``in_channels``, at most 512.
    """
    hidden = hidden or min(in_channels, 512)
    return nn.Sequential(
        nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
    )
