"""UniMatch V2."""

from functools import partial
from typing import Dict

import torch
from torch import Tensor

from mmdmt.checks import check_range
from mmdmt.models.forward import pseudo_label
from mmdmt.models.perturbations import complementary_dropout
from mmdmt.registry import MODELS

from .weak_to_strong import WeakToStrong


@MODELS.register_module()
class UniMatchV2(WeakToStrong):
    """An EMA teacher's labels for two strong views with complementary channel dropout.

    Yang et al., "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", TPAMI
    2025. The teacher labels the weak view; the student sees two strong views, each mixed on its
    own, and of its features one view keeps a random half of the channels and the other the rest.
    The loss is ``(supervised + (strong_1 + strong_2) / 2) / 2``. Labeled images and both views go
    through the student in one pass.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor. Channels are dropped from every
            map that its backbone, or neck, hands to the heads.
        clean_share (float): Share of the images whose features keep all channels, in [0, 1]; 1
            switches the dropout off. Defaults to 0.5.
        sup_weight (float): Defaults to 0.5.
        unsup_weight (float): Defaults to 0.5.
        **common: Settings of :class:`.WeakToStrong`.
    """

    takes_previous = True

    def __init__(
        self,
        segmentor: dict,
        *,
        clean_share: float = 0.5,
        sup_weight: float = 0.5,
        unsup_weight: float = 0.5,
        **common,
    ) -> None:
        common.update(sup_weight=sup_weight, unsup_weight=unsup_weight)
        super().__init__({'student': segmentor}, {'teacher': 'student'}, **common)
        check_range('clean_share', clean_share, 0, 1)
        self.clean_share = clean_share

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and cross entropy with the teacher's labels on two strong views."""
        own = pseudo_label(self.teacher, inputs['unsup_weak'], inputs['unsup_valid'])
        threshold = self.threshold(own)
        previous = self.previous_targets(inputs)
        parts = [self.mixed_view(inputs, data_samples, own, None, previous) for _ in range(2)]
        views, targets, earlier = zip(*parts)
        drop = partial(complementary_dropout, keep_clean=self.clean_share)
        losses, logits = self.forward_student(
            'student', inputs, data_samples, torch.cat(views), perturb=drop
        )
        loss, stats = self.mean_consistency(logits.chunk(2), targets, threshold)
        losses['unsup_loss'] = loss * self.unsup_scale()
        if previous:
            threshold = self.previous.threshold
            loss, _ = self.mean_consistency(logits.chunk(2), earlier, threshold)
            losses = self.add_previous(losses, loss)
        return dict(losses, **stats)
