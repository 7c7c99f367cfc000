"""Wide residual networks for small images."""

from typing import Optional, Sequence, Tuple

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from mmdmt.registry import MODELS

BASE_CHANNELS = (16, 32, 64)
NORM = dict(type='BN', requires_grad=True)
INIT = (
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


class PreActivationBlock(BaseModule):
    """Two 3x3 convolutions, each after normalization and ReLU, and a shortcut.

    The first has the stride; dropout is between them. Where the shape changes, the shortcut is a
    1x1 convolution of the activated input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, drop_rate: float, norm_cfg: dict
    ) -> None:
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = build_norm_layer(norm_cfg, out_channels)[1]
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        same = in_channels == out_channels and stride == 1
        fitting = dict(kernel_size=1, stride=stride, bias=False)
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, **fitting)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        active = self.relu(self.norm1(x))
        skipped = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.drop(self.relu(self.norm2(self.conv1(active))))) + skipped


@MODELS.register_module()
class WideResNet(BaseModule):
    """Wide ResNet with pre-activation: ``WideResNet(depth=28, widen_factor=2)`` is WRN-28-2.

    Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016. A 3x3 convolution to 16 channels,
    three stages of ``(depth - 4) / 6`` blocks with 16, 32 and 64 times ``widen_factor`` channels
    and strides 1, 2 and 2, and a last normalization with ReLU.

    Args:
        depth (int): Number of layers, 6 n + 4. Defaults to 28.
        widen_factor (int): Defaults to 2.
        drop_rate (float): Dropout inside the blocks. Defaults to 0.
        in_channels (int): Channels of the images. Defaults to 3.
        norm_cfg (dict): Normalization layers. Defaults to batch norm.
        init_cfg (dict | list[dict], optional): Initialization. Defaults to Kaiming for
            convolutions.

    Raises:
        ValueError: If ``depth`` is not 6 n + 4 with n >= 1.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 2,
        drop_rate: float = 0.0,
        in_channels: int = 3,
        norm_cfg: dict = NORM,
        init_cfg: Optional[Sequence[dict]] = INIT,
    ) -> None:
        super().__init__(init_cfg=list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f'`depth` must be 10, 16, 22, 28, ... (6 n + 4), got {depth}')
        channels = BASE_CHANNELS[0]
        self.stem = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        stages = []
        for base, stride in zip(BASE_CHANNELS, (1, 2, 2)):
            wide = base * widen_factor
            shapes = [(channels, stride)] + [(wide, 1)] * (blocks - 1)
            layers = [PreActivationBlock(c, wide, s, drop_rate, norm_cfg) for c, s in shapes]
            stages.append(Sequential(*layers))
            channels = wide
        self.stages = Sequential(*stages)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tuple[Tensor]:
        """Map (N, 3, H, W) to a tuple of one map (N, 64 * widen_factor, H / 4, W / 4)."""
        return (self.relu(self.norm(self.stages(self.stem(x)))),)
