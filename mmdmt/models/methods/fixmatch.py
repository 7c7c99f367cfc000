"""FixMatch."""

from typing import Dict

from torch import Tensor

from mmdmt.checks import check_choice
from mmdmt.models.forward import pseudo_label
from mmdmt.models.modes import in_mode
from mmdmt.registry import MODELS

from .weak_to_strong import WeakToStrong

LABELERS = ('student', 'teacher')


@MODELS.register_module()
class FixMatch(WeakToStrong):
    """Labels of the weak view, where they are confident, for a mixed strong view.

    Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
    NeurIPS 2020, as the baseline of UniMatch (CVPR 2023: the student labels for itself, in eval
    mode) and of UniMatch V2 (TPAMI 2025: an EMA teacher labels). With weights of 0.5 each the loss
    is ``(supervised + unsupervised) / 2``.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        labeler (str): 'student' or 'teacher'. Defaults to 'student', which has no teacher.
        sup_weight (float): Defaults to 0.5.
        unsup_weight (float): Defaults to 0.5.
        **common: Settings of :class:`.WeakToStrong`.
    """

    takes_previous = True

    def __init__(
        self,
        segmentor: dict,
        *,
        labeler: str = 'student',
        sup_weight: float = 0.5,
        unsup_weight: float = 0.5,
        **common,
    ) -> None:
        check_choice('labeler', labeler, LABELERS)
        teachers = {'teacher': 'student'} if labeler == 'teacher' else {}
        common.update(sup_weight=sup_weight, unsup_weight=unsup_weight)
        super().__init__({'student': segmentor}, teachers, **common)
        self.labeler = labeler

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and cross entropy with confident labels on the mixed strong view."""
        images, valid = inputs['unsup_weak'], inputs['unsup_valid']
        if self.labeler == 'teacher':
            targets = pseudo_label(self.teacher, images, valid)
        else:
            with in_mode(self.student, training=False):
                targets = pseudo_label(self.student, images, valid)
        threshold = self.threshold(targets)
        previous = self.previous_targets(inputs)
        view, targets, earlier = self.mixed_view(inputs, data_samples, targets, None, previous)
        losses, logits = self.forward_student('student', inputs, data_samples, view)
        loss, stats = self.consistency(logits, targets, threshold)
        losses['unsup_loss'] = loss * self.unsup_scale()
        if earlier:
            threshold = self.previous.threshold
            loss, _ = self.consistency(logits, earlier, threshold)
            losses = self.add_previous(losses, loss)
        return dict(losses, **stats)
