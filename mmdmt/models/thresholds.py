"""Confidence that a pseudo-label needs: a number, or one that follows the training."""

from typing import Union

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmdmt.checks import check_range
from mmdmt.models.forward import Targets
from mmdmt.registry import MODELS


class FixedThreshold(nn.Module):
    """The same number at every step, in [0, 1]."""

    def __init__(self, value: float) -> None:
        super().__init__()
        check_range('threshold', value, 0, 1)
        self.value = value

    def forward(self, targets: Targets) -> float:
        """The threshold for these targets."""
        return self.value


@MODELS.register_module()
class AdaptiveThreshold(nn.Module):
    """A global threshold that follows the confidence of the labeling network (CorrMatch).

    Sun et al., "CorrMatch: Label Propagation via Correlation Matching", CVPR 2024: before each use
    ``t <- momentum * t + (1 - momentum) * mean over the classes predicted in the batch of the
    largest confidence of that class``. The batch is that of all processes. The state is saved.

    Args:
        init (float): Threshold at the start, in [0, 1]. Defaults to 0.85.
        momentum (float): In [0, 1]. Defaults to 0.999.
        num_classes (int): Upper bound of the labels. Defaults to 256.
    """

    value: Tensor

    def __init__(self, init: float = 0.85, momentum: float = 0.999, num_classes: int = 256) -> None:
        super().__init__()
        check_range('AdaptiveThreshold.init', init, 0, 1)
        check_range('AdaptiveThreshold.momentum', momentum, 0, 1)
        self.momentum = momentum
        self.num_classes = num_classes
        self.register_buffer('value', torch.tensor(float(init)))

    @torch.no_grad()
    def forward(self, targets: Targets) -> Tensor:
        """The threshold for these targets, a scalar; in training mode it follows them first."""
        if self.training:
            # Class -1, for padding, is dropped again; confidences are above 0.
            label = targets.label.masked_fill(~targets.valid, self.num_classes).flatten()
            top = targets.confidence.new_zeros(self.num_classes + 1)
            top = top.scatter_reduce(0, label, targets.confidence.flatten(), 'amax')[:-1]
            all_reduce(top, 'max')
            mean = top.sum() / (top > 0).sum().clamp(min=1)
            self.value.lerp_(mean.to(self.value), 1 - self.momentum)
        return self.value


def build_threshold(setting: Union[float, dict]) -> nn.Module:
    """The module for a setting ``threshold``: a number, or a config such as AdaptiveThreshold's."""
    return MODELS.build(setting) if isinstance(setting, dict) else FixedThreshold(setting)
