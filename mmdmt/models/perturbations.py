"""Dropout of whole channels of the features between backbone and decode head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, Dict, List

import torch
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor

Maps = Sequence[Tensor]
Perturb = Callable[[Maps], List[Tensor]]


@contextmanager
def perturbed_features(segmentor: BaseSegmentor, perturb: Perturb) -> Iterator[None]:
    """Let ``perturb`` change the feature maps of a segmentor inside the ``with`` block.

    It concerns every map that enters its heads, whatever backbone, neck and heads are.
    """
    extract = segmentor.extract_feat
    segmentor.extract_feat = lambda images: perturb(extract(images))
    try:
        yield
    finally:
        del segmentor.extract_feat


def with_channel_dropout(maps: Maps, prob: float) -> List[Tensor]:
    """Feature maps followed by copies of which whole channels are dropped (UniMatch, CVPR 2023).

    Each map (N, C, H, W) becomes (2 N, C, H, W). A channel of an image is dropped with probability
    ``prob``, drawn for every map, and what is kept is divided by ``1 - prob``.
    """
    return [torch.cat([each, each * _keep(each, prob)]) for each in maps]


def _keep(feature: Tensor, prob: float) -> Tensor:
    kept = torch.rand(feature.shape[:2], device='cpu') >= prob
    scale = kept.to(feature.device, feature.dtype, non_blocking=True) / (1 - prob)
    return scale[:, :, None, None]


def complementary_dropout(maps: Maps, keep_clean: float = 0.5) -> List[Tensor]:
    """Drop half of the channels of one view and the other half of the other (UniMatch V2, 2025).

    The first half of a batch is one view of each image and the second half the other. Of every
    image a random half of the channels survives, doubled, in the first view and the rest in the
    second; the share ``keep_clean`` of the images, rounded down, keeps all in both. Maps with the
    same number of channels share the draw, as the taps of a transformer do.

    Args:
        maps: Feature maps (2 N, C, H, W).
        keep_clean: Share of the images without dropout, in [0, 1].
    """
    num_images = len(maps[0]) // 2
    clean = torch.randperm(num_images, device='cpu') < int(keep_clean * num_images)
    scales: Dict[int, Tensor] = {}
    result = []
    for each in maps:
        channels = each.shape[1]
        if channels not in scales:
            first = 2.0 * (torch.rand(num_images, channels, device='cpu') < 0.5)
            both = torch.cat([first, 2 - first]).masked_fill(clean.repeat(2)[:, None], 1.0)
            scales[channels] = both[:, :, None, None]
        result.append(each * scales[channels].to(each, non_blocking=True))
    return result
