"""Plain vision transformers of timm, such as DINOv2 and DINOv3, for images of any size."""

import warnings
from collections.abc import Sequence
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmseg.models.backbones import TIMMBackbone
from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.func import functional_call

from mmdmt.registry import MODELS

DINOV3_LICENSE = (
    'the weights of DINOv3 have a license of their own (the DINOv3 License of Meta), which is '
    'neither that of timm nor that of this package: read it before you use or pass on a network '
    'that was trained from them'
)


class TokenMaps(nn.Module):
    """Token maps of some blocks of a transformer of timm; later blocks are cut off."""

    def __init__(self, network: nn.Module, out_indices: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.network = network
        self.norm = norm
        self.out_indices = network.prune_intermediate_layers(list(out_indices), prune_norm=not norm)

    def forward(self, x: Tensor) -> List[Tensor]:
        """Maps (N, D, h, w) for images (N, 3, H, W)."""
        return self.network.forward_intermediates(
            x, indices=self.out_indices, norm=self.norm, intermediates_only=True
        )


@MODELS.register_module()
class TIMMVisionTransformer(TIMMBackbone):
    """Tokens of several blocks of a transformer of timm, as feature maps with a final norm each.

    Images (N, 3, H, W) are resized, bilinearly and with aligned corners, to the nearest multiple
    of the patch on each side; the maps are (N, D, h, w) with a token of each patch. This is what
    UniMatch V2 (TPAMI 2025) does outside of its network when it tests; here training, testing and
    labeling do the same.

    Args:
        model_name (str): Name in timm, such as ``'vit_small_patch14_dinov2.lvd142m'`` or
            ``'vit_small_patch16_dinov3.lvd1689m'``.
        out_indices (Sequence[int]): Blocks, counted from 0, whose tokens are handed on. UniMatch
            V2 takes (2, 5, 8, 11) of ViT-S and ViT-B and (4, 11, 17, 23) of ViT-L.
        norm (bool): Whether the final norm is applied to each of them. Defaults to True.
        position_offset (float, optional): A learned position embedding is resized to the size of
            the token map by bicubic interpolation without antialias and with the scale
            ``(size + position_offset) / (original size)``, as DINOv2 does. None takes the size
            itself. Defaults to 0.1, as in DINOv2's code.
        with_cp (bool): Compute the blocks again in the backward pass, which needs less memory.
            Defaults to False.
        pretrained (bool): Whether timm downloads weights. Offline, name a file with
            ``pretrained_cfg_overlay=dict(file=...)``. Defaults to True.
        **kwargs: As of mmseg's ``TIMMBackbone``, which hands unknown ones to timm.

    Raises:
        ValueError: If timm has no plain transformer of this name.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (2, 5, 8, 11),
        norm: bool = True,
        position_offset: Optional[float] = 0.1,
        with_cp: bool = False,
        pretrained: bool = True,
        **kwargs: Any,
    ) -> None:
        if pretrained and 'dinov3' in model_name:
            warnings.warn(DINOV3_LICENSE, stacklevel=2)
        super().__init__(
            model_name=model_name,
            features_only=False,
            pretrained=pretrained,
            num_classes=0,
            **kwargs,
        )
        network = self.timm_model
        if not hasattr(network, 'patch_embed') or not hasattr(network, 'forward_intermediates'):
            raise ValueError(
                f'`model_name`={model_name!r} is no plain vision transformer; take TIMMBackbone '
                'for other networks of timm'
            )
        network.patch_embed.strict_img_size = False
        network.set_grad_checkpointing(with_cp)
        self.timm_model = TokenMaps(network, out_indices, norm)
        self.position_offset = position_offset

    def forward(self, x: Tensor) -> List[Tensor]:
        """Maps (N, D, h, w) of the taken blocks for images (N, 3, H, W)."""
        patch = self.timm_model.network.patch_embed.patch_size
        grid = tuple(max(1, int(side / each + 0.5)) for side, each in zip(x.shape[2:], patch))
        size = tuple(side * each for side, each in zip(grid, patch))
        if size != tuple(x.shape[2:]):
            x = resize(x, size=size, mode='bilinear', align_corners=True, warning=False)
        table = self._position_embedding(grid)
        if table is None:
            return self.timm_model(x)
        return functional_call(self.timm_model, {'network.pos_embed': table}, (x,))

    def _position_embedding(self, grid: Tuple[int, int]) -> Optional[Tensor]:
        """The learned embedding for a token map of another size; None where it is not to change."""
        network = self.timm_model.network
        table = getattr(network, 'pos_embed', None)
        original = tuple(network.patch_embed.grid_size)
        if table is None or grid == original or getattr(network, 'dynamic_img_size', False):
            return None
        prefix = table[:, : table.shape[1] - original[0] * original[1]]
        tokens = table[:, prefix.shape[1] :].unflatten(1, original).permute(0, 3, 1, 2).float()
        if self.position_offset is None:
            to = dict(size=grid)
        else:
            to = dict(
                scale_factor=tuple(
                    (new + self.position_offset) / old for new, old in zip(grid, original)
                )
            )
        tokens = F.interpolate(tokens, mode='bicubic', antialias=False, **to)
        return torch.cat([prefix, tokens.flatten(2).transpose(1, 2).to(table)], dim=1)
