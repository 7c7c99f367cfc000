"""The loss of dynamic self-training as a module."""

from torch import Tensor, nn

from mmdmt.checks import check_range
from mmdmt.registry import MODELS

from .functional import LossAndStats, dynamic_self_loss


@MODELS.register_module()
class DynamicSelfLoss(nn.Module):
    """:func:`~mmdmt.models.losses.functional.dynamic_self_loss` (DST-CBC) as a module.

    Args:
        gamma (float): Exponent of the weight; 0 is plain self-training (CBST, curriculum
            labeling). Defaults to 9, the paper's value for PASCAL VOC.
    """

    def __init__(self, gamma: float = 9.0) -> None:
        super().__init__()
        check_range('gamma', gamma, 0)
        self.gamma = gamma

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        confidence: Tensor,
        is_pseudo: Tensor,
        ignore_index: int = 255,
    ) -> LossAndStats:
        """Loss and statistics of a batch; the confidence is read for these alone."""
        return dynamic_self_loss(logits, label, is_pseudo, self.gamma, ignore_index, confidence)
