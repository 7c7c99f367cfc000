"""The loss of Dynamic Mutual Training as a module."""

from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range
from mmdmt.registry import MODELS

from .functional import CONFLICTS, LossAndStats, dynamic_mutual_loss


@MODELS.register_module()
class DynamicMutualLoss(nn.Module):
    """:func:`~mmdmt.models.losses.functional.dynamic_mutual_loss` (DMT) as a module.

    Args:
        gamma1 (float): Exponent where student and pseudo-label agree. Defaults to 5, the paper's
            value for PASCAL VOC (Cityscapes: 3).
        gamma2 (float): Exponent where they disagree and the pseudo-label is more confident.
            Defaults to 5.
        conflict (str): ``'ignore'`` or ``'flip'``. Defaults to ``'ignore'``.
    """

    def __init__(self, gamma1: float = 5.0, gamma2: float = 5.0, conflict: str = 'ignore') -> None:
        super().__init__()
        check_range('gamma1', gamma1, 0)
        check_range('gamma2', gamma2, 0)
        check_choice('conflict', conflict, CONFLICTS)
        self.settings = dict(gamma1=gamma1, gamma2=gamma2, conflict=conflict)

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        confidence: Tensor,
        is_pseudo: Tensor,
        ignore_index: int = 255,
    ) -> LossAndStats:
        """Loss and statistics of a batch."""
        settings = dict(self.settings, ignore_index=ignore_index)
        return dynamic_mutual_loss(logits, label, confidence, is_pseudo, **settings)
