"""On-line self-training as a loss module."""

from typing import Dict, Optional, Tuple

from torch import Tensor, nn

from mmdmt.models.losses.functional import online_pseudo_loss
from mmdmt.registry import MODELS


@MODELS.register_module()
class OnlinePseudoLoss(nn.Module):
    """Cross entropy with labels the student makes on the fly (on-line ablation of DMT).

    Feng et al., "DMT: Dynamic Mutual Training for Semi-Supervised Learning", Pattern Recognition
    2022. The maths is in :func:`~mmdmt.models.losses.functional.online_pseudo_loss`.

    Args:
        threshold (float): Softmax value that a label needs to exceed. Defaults to 0.9.

    Raises:
        ValueError: If ``threshold`` is outside [0, 1].
    """

    def __init__(self, threshold: float = 0.9) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f'`threshold` must be in [0, 1], got {threshold}')
        self.threshold = threshold

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        confidence: Tensor,
        is_pseudo: Tensor,
        ignore_index: int = 255,
        valid: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Loss and statistics of a batch.

        Args:
            logits (Tensor): (N, C, H, W).
            label (Tensor): (N, H, W), ground truth; not read on pseudo samples.
            confidence (Tensor): (N, H, W), in (0, 1] on all pixels of an image. Outside of it on
                padding: 0 of the preprocessor, 255 of a transform that pads as if it were a label.
            is_pseudo (Tensor): (N,) bool.
            ignore_index (int): Label of pixels that are not learned.
            valid (Tensor, optional): (N, H, W) bool, False on padded pixels. Defaults to where
                ``confidence`` is in (0, 1].

        Returns:
            tuple: Scalar loss, and ``keep_ratio``.
        """
        if valid is None:
            valid = (confidence > 0) & (confidence <= 1)
        return online_pseudo_loss(
            logits, label, is_pseudo, self.threshold, ignore_index=ignore_index, valid=valid
        )

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f'threshold={self.threshold}'
