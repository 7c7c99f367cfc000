"""Online self-training as a loss module."""

from typing import Optional

from torch import Tensor, nn

from mmdmt.checks import check_range
from mmdmt.registry import MODELS

from .functional import LossAndStats, online_pseudo_loss


@MODELS.register_module()
class OnlinePseudoLoss(nn.Module):
    """:func:`~mmdmt.models.losses.functional.online_pseudo_loss` (ablation of DMT) as a module.

    Args:
        threshold (float): Softmax value that a label needs to exceed. Defaults to 0.9.
    """

    def __init__(self, threshold: float = 0.9) -> None:
        super().__init__()
        check_range('threshold', threshold, 0, 1)
        self.threshold = threshold

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        confidence: Tensor,
        is_pseudo: Tensor,
        ignore_index: int = 255,
        valid: Optional[Tensor] = None,
    ) -> LossAndStats:
        """Loss and statistics; by default pixels with a confidence in (0, 1] are ``valid``."""
        if valid is None:  # padding has a confidence of 0, or of 255 if padded as a label
            valid = (confidence > 0) & (confidence <= 1)
        return online_pseudo_loss(logits, label, is_pseudo, self.threshold, ignore_index, valid)
