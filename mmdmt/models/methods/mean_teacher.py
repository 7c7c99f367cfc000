"""Mean Teacher."""

from typing import Dict, Optional, Union

from torch import Tensor

from mmdmt.checks import check_choice
from mmdmt.models.forward import pseudo_label
from mmdmt.models.losses.consistency import consistency_loss
from mmdmt.models.losses.functional import NORMALIZERS
from mmdmt.models.thresholds import build_threshold
from mmdmt.registry import MODELS

from .base import SemiSegmentor


@MODELS.register_module()
class MeanTeacher(SemiSegmentor):
    """One student, one EMA teacher that labels the weak view for the strong one.

    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, in the form used
    for segmentation since: the teacher's hard labels and confidence on the weak view supervise
    the student on the strong view, where the teacher is confident. Optionally the strong views of
    a batch are mixed together with labels and confidence.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        strong (dict, optional): Config of the strong augmentation. Defaults to the weak view.
        mix (dict, optional): Config of a mixing view, such as ``dict(type='mmdmt.CutMix')``.
        threshold (float | dict): Confidence a pixel needs, in [0, 1], or the config of a threshold
            that adapts. Defaults to 0.95.
        normalizer (str): What the sum over confident pixels is divided by, see
            :func:`~mmdmt.models.losses.functional.masked_cross_entropy`. Defaults to 'valid'.
        **common: Settings of :class:`SemiSegmentor`.
    """

    def __init__(
        self,
        segmentor: dict,
        *,
        strong: Optional[dict] = None,
        mix: Optional[dict] = None,
        threshold: Union[float, dict] = 0.95,
        normalizer: str = 'valid',
        **common,
    ) -> None:
        super().__init__({'student': segmentor}, {'teacher': 'student'}, **common)
        self.strong = MODELS.build(strong) if strong else None
        self.mix = MODELS.build(mix) if mix else None
        self.threshold = build_threshold(threshold)
        check_choice('normalizer', normalizer, NORMALIZERS)
        self.normalizer = normalizer

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and cross entropy with the teacher's labels on the strong view."""
        targets = pseudo_label(self.teacher, inputs['unsup_weak'], inputs['unsup_valid'])
        threshold = self.threshold(targets)
        view = self.strong_view(self.strong, inputs, data_samples)
        if self.mix is not None:
            view, targets = self.mix(view, targets)
        losses, logits = self.forward_student('student', inputs, data_samples, view)
        loss, stats = consistency_loss(logits, targets, threshold, self.normalizer)
        return dict(losses, unsup_loss=loss * self.unsup_scale(), **stats)
