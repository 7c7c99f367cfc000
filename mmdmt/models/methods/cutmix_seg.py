"""CutMix-Seg."""

from typing import Dict, Optional

import torch
from torch import Tensor

from mmdmt.checks import check_range
from mmdmt.models.forward import Targets, dense_logits
from mmdmt.models.losses.consistency import agreement_stats
from mmdmt.models.losses.functional import squared_consistency_loss
from mmdmt.registry import MODELS

from .base import SemiSegmentor


@MODELS.register_module()
class CutMixSeg(SemiSegmentor):
    """Mean Teacher whose mixed probabilities are the student's soft targets on mixed images.

    French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations",
    BMVC 2020. The teacher's softmax of two images is mixed as the images are, and the student's
    softmax of the mixed image is drawn to it by the squared error. The loss is weighted by the
    share of pixels of the batch on which the teacher is confident, or counts those pixels only.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        strong (dict, optional): Config of a strong augmentation of what the student sees.
            Defaults to the weak view.
        mix (dict, optional): Config of a mixing view. Defaults to one box of half the area.
        threshold (float): Confidence a pixel needs, in [0, 1]; at 0 all count. Defaults to 0.97.
        per_pixel (bool): Whether the squared error counts on confident pixels only, instead of on
            all, weighted by the share of confident ones. Defaults to False.
        **common: Settings of :class:`SemiSegmentor`.
    """

    def __init__(
        self,
        segmentor: dict,
        *,
        strong: Optional[dict] = None,
        mix: Optional[dict] = None,
        threshold: float = 0.97,
        per_pixel: bool = False,
        **common,
    ) -> None:
        super().__init__({'student': segmentor}, {'teacher': 'student'}, **common)
        check_range('threshold', threshold, 0, 1)
        self.strong = MODELS.build(strong) if strong else None
        self.mix = MODELS.build(mix or HALF_BOX)
        self.threshold = threshold
        self.per_pixel = per_pixel

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and squared error to the teacher's mixed probabilities."""
        with torch.no_grad():
            probs = dense_logits(self.teacher, inputs['unsup_weak']).float().softmax(dim=1)
        targets = Targets(*probs.max(dim=1)[::-1], inputs['unsup_valid'])
        view = self.strong_view(self.strong, inputs, data_samples)
        mixing = self.mix.draw(targets)
        view, probs, *mixed = mixing(view, probs, *targets)
        targets = Targets(*mixed)
        losses, logits = self.forward_student('student', inputs, data_samples, view)
        loss, stats = squared_consistency_loss(
            logits, probs, self.threshold, targets.valid, self.per_pixel
        )
        losses['unsup_loss'] = loss * self.unsup_scale()
        return dict(
            losses, unsup_keep_ratio=stats['keep_ratio'], **agreement_stats(logits, targets)
        )


HALF_BOX = dict(type='mmdmt.CutMix', prob=1.0, boxes='french', count=1, area=(0.5, 0.5))
