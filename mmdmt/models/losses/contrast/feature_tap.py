"""Pixel features of any mmseg segmentor: what its last classifier reads."""

from typing import List, Optional, Tuple

import torch
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn

from mmdmt.models.forward import two_logits

#: The classifier of nearly all mmseg heads, a 1x1 convolution from features to logits.
CLASSIFIER = 'decode_head.conv_seg'


def find_classifier(segmentor: BaseSegmentor, path: str = CLASSIFIER) -> nn.Module:
    """The module of a segmentor, of a cascade's last head, that turns pixel features into logits.

    Raises:
        ValueError: If it has no module ``path``, as heads that classify masks or points.
    """
    module: Optional[nn.Module] = segmentor
    for name in path.split('.'):
        last = module[-1] if isinstance(module, nn.ModuleList) and len(module) else None
        module = getattr(module, name, getattr(last, name, None))
    if not isinstance(module, nn.Module):
        raise ValueError(
            f'pixel features are read before `{path}`, but {_head_name(segmentor)} has no such '
            'module: name the layer whose input is one feature per pixel as '
            '`contrast.classifier`, or switch both modules off (`contrast=None`)'
        )
    return module


def feature_channels(classifier: nn.Module) -> int:
    """Channels of the features that a classifier reads; ValueError if it has no ``in_channels``."""
    for module in classifier.modules():
        if isinstance(getattr(module, 'in_channels', None), int):
            return module.in_channels
    raise ValueError(
        f'cannot tell how many channels {type(classifier).__name__} reads: `contrast.classifier` '
        'must name a convolution or hold one'
    )


def _head_name(segmentor: BaseSegmentor) -> str:
    head = getattr(segmentor, 'decode_head', segmentor)
    return type(head[-1] if isinstance(head, nn.ModuleList) else head).__name__


class FeatureTap:
    """Records what the last classifier of a segmentor reads and predicts, inside a ``with`` block.

    ::

        with FeatureTap(segmentor) as tap:
            dense_logits(segmentor, images)
        features = tap.features  # (N, D, h, w)

    mmseg's heads end in ``conv_seg(dropout(features))``. The tap sits directly before
    ``conv_seg``, i.e. **after** the dropout, as in the released code of Cross Teacher Training:
    in training mode some channels of an image are 0, in eval mode nothing is. Features keep
    their graph. Nothing of the segmentor is edited, and outside the block nothing is recorded.
    Args and errors are those of :func:`find_classifier`.
    """

    def __init__(self, segmentor: BaseSegmentor, path: str = CLASSIFIER) -> None:
        self.path = path
        self.head = _head_name(segmentor)
        self.classifier = find_classifier(segmentor, path)
        self.calls: List[Tuple[Tensor, Tensor]] = []
        self._handle = None

    def __enter__(self) -> 'FeatureTap':
        self._handle = self.classifier.register_forward_hook(self._record)
        return self

    def __exit__(self, *_) -> None:
        self._handle.remove()

    def _record(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        feature = args[0]
        if feature.ndim != 4 or output.ndim != 4 or feature.shape[2:] != output.shape[2:]:
            raise ValueError(
                f'`{self.path}` of {self.head} does not classify a feature map pixel by pixel: it '
                f'turned {tuple(feature.shape)} into {tuple(output.shape)}'
            )
        self.calls.append((feature, output))

    @property
    def features(self) -> Tensor:
        """Features (N, D, h, w) of all images that ran inside the block, in their order."""
        return self._stacked(0)

    @property
    def logits(self) -> Tensor:
        """Logits (N, C, h, w) on the pixels of :attr:`features`, two of a head of one channel."""
        return two_logits(self._stacked(1))

    def _stacked(self, index: int) -> Tensor:
        if not self.calls:
            raise ValueError(
                f'{self.head} never called `{self.path}`: name the layer whose input is one '
                'feature per pixel as `contrast.classifier`'
            )
        maps = [call[index] for call in self.calls]
        return maps[0] if len(maps) == 1 else torch.cat(maps)
