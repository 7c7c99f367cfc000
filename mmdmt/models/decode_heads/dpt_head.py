"""The DPT head of UniMatch V2."""

from collections.abc import Sequence
from typing import List, Optional

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmdmt.registry import MODELS


class ResidualConvUnit(nn.Sequential):
    """ReLU, 3x3 convolution, ReLU, 3x3 convolution, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return x + super().forward(x)


class FusionBlock(nn.Module):
    """Adds a map of its own level to that of the coarser ones, and makes it larger."""

    def __init__(self, channels: int, with_skip: bool) -> None:
        super().__init__()
        self.skip = ResidualConvUnit(channels) if with_skip else None
        self.unit = ResidualConvUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, skip: Optional[Tensor], size: Sequence[int]) -> Tensor:
        """(N, C, h, w), and a skip map alike, to (N, C, *size)."""
        if self.skip is not None:
            x = x + self.skip(skip)
        return self.project(_resize(self.unit(x), size))


def _resize(x: Tensor, size: Sequence[int], align_corners: bool = True) -> Tensor:
    return resize(x, tuple(size), mode='bilinear', align_corners=align_corners, warning=False)


@MODELS.register_module()
class DPTHead(BaseDecodeHead):
    """Decode head of UniMatch V2 (TPAMI 2025) for the tokens of a plain vision transformer.

    Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, in the form of Depth
    Anything and UniMatch V2: four maps of one size become maps of 1/4, 1/2, 1 and 2 patches, which
    are fused from coarse to fine. mmseg has a ``DPTHead`` too, which wants class tokens, has batch
    norm in it and resizes the skip maps instead of the coarser ones.

    Args:
        in_channels (int | Sequence[int]): Channels of the token maps.
        channels (int): Of the fused maps: 64, 128, 256 and 384 for ViT-S, -B, -L and -g.
        project_channels (Sequence[int]): Of the four levels: (48, 96, 192, 384), (96, 192, 384,
            768), (256, 512, 1024, 1024) and (1536, 1536, 1536, 1536) as published.
        patch_size (int): Side of a patch in pixels. Logits are resized to this many pixels for
            each token, before mmseg resizes them to that of the image. Defaults to 14.
        in_index (Sequence[int]): The maps taken. Defaults to (0, 1, 2, 3).
        dropout_ratio (float): Channel dropout before the classifier. Defaults to 0.
        align_corners (bool): Defaults to True, as published.
        **kwargs: Of mmseg's ``BaseDecodeHead``; there is no normalization layer.
    """

    def __init__(
        self,
        in_channels,
        channels: int,
        project_channels: Sequence[int],
        patch_size: int = 14,
        in_index: Sequence[int] = (0, 1, 2, 3),
        dropout_ratio: float = 0.0,
        align_corners: bool = True,
        **kwargs,
    ) -> None:
        count = len(project_channels)
        if isinstance(in_channels, int):
            in_channels = [in_channels] * count
        if not count == len(in_index) == len(in_channels) == 4:
            raise ValueError(
                'DPTHead takes four maps: `in_channels`, `in_index` and `project_channels` need '
                f'four values each, got {in_channels}, {in_index} and {project_channels}'
            )
        super().__init__(
            in_channels=list(in_channels),
            channels=channels,
            in_index=list(in_index),
            input_transform='multiple_select',
            dropout_ratio=dropout_ratio,
            align_corners=align_corners,
            **kwargs,
        )
        self.patch_size = patch_size
        self.projects = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip(in_channels, project_channels)
        )
        fourth, half, _, twice = project_channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(fourth, fourth, 4, stride=4),
                nn.ConvTranspose2d(half, half, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(twice, twice, 3, stride=2, padding=1),
            ]
        )
        self.reduce = nn.ModuleList(
            nn.Conv2d(each, channels, 3, padding=1, bias=False) for each in project_channels
        )
        # The coarsest block has nothing to add to.
        self.fuse = nn.ModuleList(FusionBlock(channels, with_skip=level < 3) for level in range(4))
        self.output = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, inputs: List[Tensor]) -> Tensor:
        """Logits (N, num_classes, p h, p w) of four maps (N, D, h, w), with p pixels a patch."""
        taps = self._transform_inputs(inputs)
        levels = [
            reduce(rescale(project(tap)))
            for tap, project, rescale, reduce in zip(
                taps, self.projects, self.resize_layers, self.reduce
            )
        ]
        finest = [2 * side for side in levels[0].shape[2:]]
        sizes = [finest, *(level.shape[2:] for level in levels[:3])]
        x = self.fuse[3](levels[3], None, sizes[3])
        for index in (2, 1, 0):
            x = self.fuse[index](x, levels[index], sizes[index])
        size = [self.patch_size * side for side in taps[0].shape[2:]]
        logits = self.cls_seg(self.output(x))
        return _resize(logits, size, self.align_corners)
