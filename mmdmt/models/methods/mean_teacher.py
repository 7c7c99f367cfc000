"""Mean Teacher."""

from typing import Dict

from torch import Tensor

from mmdmt.models.forward import pseudo_label
from mmdmt.registry import MODELS

from .weak_to_strong import WeakToStrong


@MODELS.register_module()
class MeanTeacher(WeakToStrong):
    """One student, one EMA teacher that labels the weak view for the strong one.

    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, in the form used
    for segmentation since: the teacher's hard labels and confidence on the weak view supervise
    the student on the strong view, where the teacher is confident. Optionally the strong views of
    a batch are mixed together with labels and confidence.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        **common: Settings of :class:`.WeakToStrong`.
    """

    def __init__(self, segmentor: dict, **common) -> None:
        super().__init__({'student': segmentor}, {'teacher': 'student'}, **common)

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and cross entropy with the teacher's labels on the strong view."""
        targets = pseudo_label(self.teacher, inputs['unsup_weak'], inputs['unsup_valid'])
        threshold = self.threshold(targets)
        view, targets, _ = self.mixed_view(inputs, data_samples, targets)
        losses, logits = self.forward_student('student', inputs, data_samples, view)
        loss, stats = self.consistency(logits, targets, threshold)
        return dict(losses, unsup_loss=loss * self.unsup_scale(), **stats)
