"""U2PL."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Dict, Optional, Union

import torch
from torch import Tensor

from mmdmt.checks import build_part, check_choice, check_range
from mmdmt.models.forward import dense_logits, pseudo_label, stack_pixel_data
from mmdmt.models.losses.consistency import agreement_stats
from mmdmt.models.losses.contrast.unreliable_contrast import Pixels, UnreliableContrast
from mmdmt.models.losses.entropy import masked_quantiles, pixel_entropy
from mmdmt.models.losses.functional import NORMALIZERS
from mmdmt.models.losses.region import UnsupervisedLoss
from mmdmt.models.modes import in_mode
from mmdmt.registry import MODELS

from .base import SemiSegmentor


@MODELS.register_module()
class U2PL(SemiSegmentor):
    """Certain pixels are learned; uncertain ones are negatives of classes that they are not.

    Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022
    (arXiv 2203.03884). In each step:

    1. The teacher, in eval mode, labels the unlabeled images, which are mixed with their labels.
    2. The student sees labeled and mixed images; so does the teacher, now in training mode and
       without gradient, from which come entropies, class probabilities and representations. The
       running statistics of its batch norm are those of this second pass.
    3. Of the mixed pixels the ``drop_percent`` of highest entropy are left out of the cross entropy
       with the teacher's labels. The percentage falls linearly to 0 until the end of the run.
    4. :class:`.UnreliableContrast` is added.

    Until the semi-supervised part starts, the teacher is a copy of the student; its updates are
    counted from there. Percentiles are those of the images of each rank.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        strong (dict, optional): Config of a strong augmentation of what is mixed. Defaults to the
            weak view, as published.
        mix (dict, optional): Config of a mixing view. Defaults to none.
        drop_percent (float): Percentage at the start of the run, in [0, 100]. Also that of the
            pixels of lowest entropy that are anchors of the contrast. Defaults to 20.
        normalizer (str): See :func:`~mmdmt.models.losses.functional.masked_cross_entropy`. Defaults
            to 'kept', as published.
        unsup_loss (str | dict | list): What is learned from certain labels, see
            :class:`~mmdmt.models.losses.region.UnsupervisedLoss`. Defaults to 'ce'.
        sup_only (float): Share of the run, in [0, 1], at whose start labeled images alone are
            learned. Defaults to 0.
        contrast (dict, optional): Settings of ``UnreliableContrast`` but the first. Defaults to
            None, without contrast.
        **common: Settings of :class:`SemiSegmentor`; in ``ema``, ``buffers`` are kept by default.
    """

    def __init__(
        self,
        segmentor: dict,
        *,
        strong: Optional[dict] = None,
        mix: Optional[dict] = None,
        drop_percent: float = 20.0,
        normalizer: str = 'kept',
        unsup_loss: Union[str, dict, Sequence] = 'ce',
        sup_only: float = 0.0,
        contrast: Optional[dict] = None,
        **common,
    ) -> None:
        common['ema'] = dict(dict(buffers='keep'), **(common.get('ema') or {}))
        super().__init__({'student': segmentor}, {'teacher': 'student'}, **common)
        check_range('drop_percent', drop_percent, 0, 100)
        check_choice('normalizer', normalizer, NORMALIZERS)
        check_range('sup_only', sup_only, 0, 1)
        self.strong = MODELS.build(strong) if strong else None
        self.mix = MODELS.build(mix) if mix else None
        self.unsup_loss = UnsupervisedLoss(unsup_loss)
        self.drop_percent, self.normalizer, self.sup_only = drop_percent, normalizer, sup_only
        self.contrast = None
        if contrast is not None:
            self.contrast = build_part('contrast', UnreliableContrast, contrast, self.student)

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, cross entropy with certain labels, and contrast."""
        if self.step < self.start_step():
            losses = self.loss(dict(sup=inputs['sup']), data_samples)
            return losses if self.contrast is None else dict(losses, **self.contrast.idle())
        targets = pseudo_label(self.teacher, inputs['unsup_weak'], inputs['unsup_valid'])
        view = self.strong_view(self.strong, inputs, data_samples)
        if self.mix is not None:
            view, targets = self.mix(view, targets)
        with self._tap('student') as student:
            losses, logits = self.forward_student('student', inputs, data_samples, view)
        with self._tap('teacher') as teacher:
            entropy = self._entropy(inputs['sup'], view)
        share = self.drop_share()
        low, high = masked_quantiles(entropy, targets.valid, [share, 1 - share])
        uncertain = (entropy >= high) & targets.valid
        loss, stats = self.unsup_loss(
            logits, targets.label, (~uncertain).float(), 0.5, targets.valid, self.normalizer
        )
        losses['unsup_loss'] = loss * self.unsup_scale()
        if self.contrast is not None:
            truth = stack_pixel_data(data_samples['sup'], 'gt_sem_seg')
            pixels = Pixels(truth, targets.label, (entropy <= low) & targets.valid, uncertain)
            losses.update(self.contrast(student, teacher, pixels))
        keep_ratio = stats['keep_ratio']
        return dict(losses, unsup_keep_ratio=keep_ratio, **agreement_stats(logits, targets))

    @torch.no_grad()
    def _entropy(self, sup: Tensor, view: Tensor) -> Tensor:
        """The teacher's on the mixed images, (N_u, H, W), in training mode together with others."""
        with in_mode(self.teacher, training=True, tracked=True):
            logits = dense_logits(self.teacher, torch.cat([sup, view]))
        return pixel_entropy(logits[len(sup) :])

    def _tap(self, name: str):
        """Records the features of a network for the contrast."""
        return self.contrast.tap(self.network(name)) if self.contrast else nullcontext()

    def start_step(self) -> int:
        """First step with unlabeled images."""
        return round(self.sup_only * (self.max_iters or 0))

    def drop_share(self) -> float:
        """Share of the pixels, in [0, 1], that count as uncertain in this step."""
        left = 1 - self.step / self.max_iters if self.max_iters else 1.0
        return self.drop_percent / 100 * max(0.0, left)

    def teacher_step(self, name: str) -> int:
        """Number of updates the teacher has had since it is more than a copy."""
        return self.step - self.start_step()

    def reset_teachers(self) -> None:
        """Make the teacher a copy of the student, with its representation."""
        super().reset_teachers()
        if self.contrast is not None:
            self.contrast.teacher.load_state_dict(self.contrast.student.state_dict())

    def update_teacher(self, name: str) -> None:
        """Move the teacher, and its representation, towards the student; first copy it."""
        if self.step < self.start_step():
            return self.reset_teachers()
        super().update_teacher(name)
        if self.contrast is not None:
            heads = self.contrast.teacher, self.contrast.student
            self.ema.update(*heads, self.teacher_step(name))
