"""The loss of dynamic self-training as a module."""

from typing import Dict, Tuple

from torch import Tensor, nn

from mmdmt.models.losses.functional import dynamic_self_loss
from mmdmt.registry import MODELS


@MODELS.register_module()
class DynamicSelfLoss(nn.Module):
    """Cross entropy weighted by the student's own trust in the pseudo-label (DST-CBC).

    Feng et al., "Semi-Supervised Semantic Segmentation via Dynamic Self-Training and
    Class-Balanced Curriculum", arXiv 2004.08514v1. The maths is in
    :func:`~mmdmt.models.losses.functional.dynamic_self_loss`.

    Args:
        gamma (float): Exponent of the weight; 0 is plain self-training (CBST, curriculum
            labeling). Defaults to 9, the paper's value for PASCAL VOC.

    Raises:
        ValueError: If ``gamma`` is negative.
    """

    def __init__(self, gamma: float = 9.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f'`gamma` must be >= 0, got {gamma}')
        self.gamma = gamma

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
            confidence (Tensor): (N, H, W) in [0, 1], of the pseudo-labels. For statistics only.
            is_pseudo (Tensor): (N,) bool.
            ignore_index (int): Label of pixels that are not learned.

        Returns:
            tuple: Scalar loss, and ``disagreement``, ``student_wins``, ``mean_weight``.
        """
        return dynamic_self_loss(
            logits,
            label,
            is_pseudo,
            self.gamma,
            ignore_index=ignore_index,
            confidence=confidence,
        )

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f'gamma={self.gamma}'
