"""AugSeg."""

from typing import Dict, Optional

import torch
from torch import Tensor

from mmdmt.checks import check_count
from mmdmt.models.forward import dense_logits, hard_labels, stack_pixel_data
from mmdmt.models.views import AdaptiveCutMix, reliability
from mmdmt.registry import MODELS

from .weak_to_strong import WeakToStrong


@MODELS.register_module()
class AugSeg(WeakToStrong):
    """An EMA teacher's labels for augmentation of random intensity and label-adaptive CutMix.

    Zhao et al., "Augmentation Matters: A Simple-yet-Effective Approach to Semi-Supervised Semantic
    Segmentation", CVPR 2023. The less reliable the teacher's labels of an image are, the more often
    labeled pixels are mixed in, see :class:`.AdaptiveCutMix`. The loss is ``supervised +
    unsupervised``, the latter, as published, averaged over all pixels.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        mix (dict, optional): Config of :class:`.AdaptiveCutMix`. None mixes nothing.
        normalizer (str): Defaults to 'all'.
        extra_weak (bool): Whether the weak view passes through the student too, between labeled
            and mixed images, for the statistics of batch norm only. Defaults to False.
        copy_iters (int, optional): Iterations in which the teacher is a copy of the student, after
            which it follows as ``ema`` says. Defaults to the first pass over the unlabeled images.
        **common: Settings of :class:`.WeakToStrong`.

    Raises:
        ValueError: If ``mix`` is another mixing view, or ``ema.warmup`` is off, without which the
            teacher cannot be a copy at the start; then ``copy_iters`` has to be 0.
    """

    def __init__(
        self,
        segmentor: dict,
        *,
        mix: Optional[dict] = None,
        normalizer: str = 'all',
        extra_weak: bool = False,
        copy_iters: Optional[int] = None,
        **common,
    ) -> None:
        common.update(mix=mix, normalizer=normalizer)
        super().__init__({'student': segmentor}, {'teacher': 'student'}, **common)
        if not isinstance(self.mix, (AdaptiveCutMix, type(None))):
            raise ValueError(
                f"`mix` of AugSeg must be of the type 'mmdmt.AdaptiveCutMix', got {mix!r}"
            )
        if copy_iters is not None:
            check_count('copy_iters', copy_iters, 0)
        if copy_iters != 0 and not self.ema.warmup:
            raise ValueError('`ema.warmup` is False, so set `copy_iters=0`')
        self.extra_weak = extra_weak
        self.copy_iters = copy_iters

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and cross entropy with the teacher's labels on mixed strong views."""
        weak, valid = inputs['unsup_weak'], inputs['unsup_valid']
        with torch.no_grad():
            seen = dense_logits(self.teacher, weak)
        targets, trust = hard_labels(seen, valid), reliability(seen, valid)
        threshold = self.threshold(targets)
        view = self.strong_view(self.strong, inputs, data_samples)
        if self.mix is not None:
            ground_truth = stack_pixel_data(data_samples['sup'], 'gt_sem_seg')
            view, targets = self.mix(view, targets, trust, inputs['sup'], ground_truth)
        shown = torch.cat([weak, view]) if self.extra_weak else view
        losses, logits = self.forward_student('student', inputs, data_samples, shown)
        logits = logits[-len(view) :]
        loss, stats = self.consistency(logits, targets, threshold)
        stats['unsup_reliability'] = trust.mean()
        return dict(losses, unsup_loss=loss * self.unsup_scale(), **stats)

    def teacher_step(self, name: str) -> int:
        """The step, for the momentum; 0, which makes a copy, at the start of the run."""
        first_pass = self.pass_iters[1] if len(self.pass_iters) > 1 else 0
        copied = first_pass if self.copy_iters is None else self.copy_iters
        return 0 if self.step < copied else self.step
