"""The decode head of DeepLabV2: a sum of dilated convolutions."""

from collections.abc import Sequence
from functools import reduce
from typing import List, Optional

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from mmdmt.registry import MODELS

NORMAL = dict(type='Normal', layer='Conv2d', std=0.01)


class DilatedConvSum(nn.ModuleList):
    """Classifier that sums the first ``num_summed`` 3x3 convolutions of several dilations.

    The others hold weights of a checkpoint, are never run and get no gradient. Maps keep their
    size.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilations: Sequence[int], num_summed: int
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )
        self.num_summed = num_summed
        # DistributedDataParallel stops at trainable parameters that no loss depends on.
        for conv in list(self)[num_summed:]:
            conv.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, out_channels, H, W) of a feature map (N, in_channels, H, W)."""
        return reduce(torch.add, (conv(x) for conv in list(self)[: self.num_summed]))


@MODELS.register_module()
class DeepLabV2Head(BaseDecodeHead):
    """Atrous spatial pyramid pooling of `DeepLabV2 <https://arxiv.org/abs/1606.00915>`_.

    The ResNet form of the paper (its ASPP-L without the two 1x1 convolutions): one dilated 3x3
    convolution with bias per rate, straight from the backbone feature to the classes, summed.
    There is no bottleneck, normalization or activation: ``conv_seg``, the classifier of every
    mmseg head, is the whole head here and reads the backbone feature.

    Much published semi-supervised work, DMT among it, trained with only the first two
    convolutions: a ``return`` inside the loop of the code they started from (AdvSemiSeg) left out
    rates 18 and 24. Use ``num_summed=2`` to repeat them. Their files hold all four, as
    ``<layer>.conv2d_list.<i>``, which belong in ``decode_head.conv_seg.<i>``.

    Args:
        in_channels (int): Channels of the backbone feature.
        dilations (Sequence[int]): Dilations of the convolutions. Defaults to (6, 12, 18, 24).
        num_summed (int, optional): How many convolutions, from the first, are summed. Defaults to
            all of them.
        dropout_ratio (float): Channel dropout before the classifier. Defaults to 0, as published.
        init_cfg (dict, optional): Defaults to a normal distribution of std 0.01, as of other heads
            of mmseg. None leaves what torch initializes, a uniform distribution of std 0.00425 for
            2048 channels, as published DMT.
        **kwargs: Of mmseg's ``BaseDecodeHead``; ``norm_cfg`` and ``act_cfg`` have no effect.

    Raises:
        TypeError: If ``in_channels`` is no int: the head reads one feature map.
        ValueError: If ``num_summed`` is not in 1 .. ``len(dilations)``.
    """

    def __init__(
        self,
        in_channels: int,
        dilations: Sequence[int] = (6, 12, 18, 24),
        num_summed: Optional[int] = None,
        dropout_ratio: float = 0.0,
        init_cfg: Optional[dict] = NORMAL,
        **kwargs,
    ) -> None:
        if not isinstance(in_channels, int):
            raise TypeError(
                'DeepLabV2Head reads one feature map: `in_channels` must be an int, '
                f'got {in_channels!r}'
            )
        num_summed = len(dilations) if num_summed is None else num_summed
        if not 1 <= num_summed <= len(dilations):
            raise ValueError(
                f'`num_summed` must be in 1..{len(dilations)}, the number of `dilations` '
                f'{tuple(dilations)}, got {num_summed}'
            )
        super().__init__(
            in_channels,
            channels=in_channels,
            dropout_ratio=dropout_ratio,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.conv_seg = DilatedConvSum(in_channels, self.out_channels, dilations, num_summed)

    def forward(self, inputs: List[Tensor]) -> Tensor:
        """Logits (N, num_classes, h, w) of the feature map that ``in_index`` picks."""
        return self.cls_seg(self._transform_inputs(inputs))
