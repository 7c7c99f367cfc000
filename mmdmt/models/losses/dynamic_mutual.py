"""The loss of Dynamic Mutual Training as a module."""

from typing import Dict, Tuple

from torch import Tensor, nn

from mmdmt.models.losses.functional import CONFLICTS, dynamic_mutual_loss
from mmdmt.registry import MODELS


@MODELS.register_module()
class DynamicMutualLoss(nn.Module):
    """Cross entropy weighted by the agreement of two models (DMT).

    Feng et al., "DMT: Dynamic Mutual Training for Semi-Supervised Learning", Pattern Recognition
    2022. The maths is in :func:`~mmdmt.models.losses.functional.dynamic_mutual_loss`.

    Args:
        gamma1 (float): Exponent where student and pseudo-label agree. Defaults to 5, the paper's
            value for PASCAL VOC (Cityscapes: 3).
        gamma2 (float): Exponent where they disagree and the pseudo-label is surer. Defaults to 5.
        conflict (str): ``'ignore'`` or ``'flip'``. Defaults to ``'ignore'``.

    Raises:
        ValueError: If a gamma is negative or ``conflict`` is unknown.
    """

    def __init__(self, gamma1: float = 5.0, gamma2: float = 5.0, conflict: str = 'ignore') -> None:
        super().__init__()
        if min(gamma1, gamma2) < 0:
            raise ValueError(f'gammas must be >= 0, got gamma1={gamma1}, gamma2={gamma2}')
        if conflict not in CONFLICTS:
            raise ValueError(f'`conflict` must be one of {CONFLICTS}, got {conflict!r}')
        self.gamma1 = gamma1
        self.gamma2 = gamma2
        self.conflict = conflict

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        confidence: Tensor,
        is_pseudo: Tensor,
        ignore_index: int = 255,
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Loss and statistics of a batch.

        Args:
            logits (Tensor): (N, C, H, W).
            label (Tensor): (N, H, W), ground truth or pseudo-label.
            confidence (Tensor): (N, H, W) in [0, 1], of the pseudo-labels.
            is_pseudo (Tensor): (N,) bool.
            ignore_index (int): Label of pixels that are not learned.

        Returns:
            tuple: Scalar loss, and ``disagreement``, ``student_wins``, ``mean_weight``.
        """
        return dynamic_mutual_loss(
            logits,
            label,
            confidence,
            is_pseudo,
            self.gamma1,
            self.gamma2,
            conflict=self.conflict,
            ignore_index=ignore_index,
        )

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f'gamma1={self.gamma1}, gamma2={self.gamma2}, conflict={self.conflict!r}'
