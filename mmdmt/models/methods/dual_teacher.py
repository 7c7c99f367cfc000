"""Dual Teacher: temporary teachers that take turns."""

import sys
from collections.abc import Sequence
from typing import Dict, List, Optional, Tuple, Union

from torch import Tensor, nn

from mmdmt.checks import check_range
from mmdmt.models.forward import Targets, dense_logits, is_padded, pseudo_label
from mmdmt.models.losses.consistency import consistency_loss
from mmdmt.models.losses.functional import confidence_share_loss
from mmdmt.models.modes import untracked_statistics
from mmdmt.models.stochastic_depth import StochasticDepth, disable_drop_path
from mmdmt.models.thresholds import build_threshold
from mmdmt.models.views.shift import Shift
from mmdmt.registry import MODELS

from .base import SemiSegmentor

#: The published shifts: CutMix, its own color jitter and flip; then ClassMix of the strong view.
PUBLISHED_SHIFTS = (
    dict(
        mix=dict(type='mmdmt.CutMix', prob=1.0, boxes='beta', partner='shuffle'),
        view='weak',
        strong=dict(type='mmdmt.StrongAugment', preset='dual_teacher_cutmix'),
        flip_prob=0.5,
        per_image=True,
    ),
    dict(mix=dict(type='mmdmt.ClassMix', partner='shuffle'), view='strong', per_image=False),
)

#: Implicit consistency by default: DropPath of a transformer, skipped residual blocks of a CNN.
SUB_MODEL = dict(drop_rate=0.1, rule='linear')


@MODELS.register_module()
class DualTeacher(SemiSegmentor):
    """One student, and temporary teachers of which one at a time labels for it and follows it.

    Na et al., "Switching Temporary Teachers for Semi-Supervised Semantic Segmentation", NeurIPS
    2023. A single EMA teacher becomes a copy of its student; here a teacher follows the student
    only while it is on duty, starting anew from the student, and each shift has a strong
    augmentation of its own. A step is::

        label, confidence = teacher on duty (weak view)
        loss = sup_weight * CE(student(labeled))
             + ramp * unsup_weight * share of confident pixels * CE(student(mixed), mixed label)
             + ramp * consistency_weight * sum(1[c >= threshold] CE(sub-model(strong view), label))
                                           / #valid pixels

    in three forward passes: the student on labeled and mixed images together, a random sub-model
    of it on the strong view ("implicit consistency"), the teacher on the weak view. The sub-model
    is the student without some residual blocks, or under its own DropPath.

    This is the paper's intent; :class:`ReleasedDualTeacher` does what its released code does.
    Networks are ``student``, ``teacher_0``, ``teacher_1``, ...; the student predicts by default,
    as published.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        num_teachers (int): 2 by default; 1 is the ablation in which a single EMA teacher works all
            shifts.
        shift_length (int | str): Iterations of a shift, or 'epoch' (default): as many as it takes
            to draw every labeled image once, by all processes together.
        shifts (Sequence[dict]): Arguments of :class:`Shift`, used in turn. With as many shifts as
            teachers, each teacher has its own. Defaults to :data:`PUBLISHED_SHIFTS`.
        restart (bool): Whether a teacher counts its updates from 0 in each shift, as published:
            the first one makes it a copy of the student, and then it averages the students of
            this shift. This is what makes it temporary. False: it goes on from its last shift,
            and labels with older weights than a single EMA teacher. Defaults to True.
        strong (dict, optional): Config of the strong augmentation. Defaults to the weak view.
        threshold (float | dict): Confidence a pixel needs, in [0, 1], or the config of a threshold
            that adapts. Defaults to 0.95.
        consistency_weight (float): Weight of implicit consistency, which costs no pass without
            weight. Defaults to 0.2.
        sub_model (dict, optional): Arguments of
            :class:`~mmdmt.models.stochastic_depth.StochasticDepth`; None: the full student.
            Defaults to :data:`SUB_MODEL`.
        **common: Settings of :class:`SemiSegmentor`.
    """

    default_predict_on = 'student'
    shift_type = Shift

    def __init__(
        self,
        segmentor: dict,
        *,
        num_teachers: int = 2,
        shift_length: Union[int, str] = 'epoch',
        shifts: Sequence[dict] = PUBLISHED_SHIFTS,
        restart: bool = True,
        strong: Optional[dict] = None,
        threshold: Union[float, dict] = 0.95,
        consistency_weight: float = 0.2,
        sub_model: Optional[dict] = SUB_MODEL,
        **common,
    ) -> None:
        check_range('num_teachers', num_teachers, 1)
        check_range('consistency_weight', consistency_weight, 0)
        if shift_length != 'epoch' and not (isinstance(shift_length, int) and shift_length > 0):
            raise ValueError(
                "`shift_length` must be 'epoch' or a positive number of iterations, got "
                f'{shift_length!r}'
            )
        teachers = {f'teacher_{index}': 'student' for index in range(num_teachers)}
        super().__init__({'student': segmentor}, teachers, **common)
        for name in self.teacher_names:
            disable_drop_path(self.network(name))
        self.shift_length = shift_length
        # Until `start_run` knows how long an epoch is, the first shift does not end.
        self.shift_iters = sys.maxsize if shift_length == 'epoch' else shift_length
        self.shifts = nn.ModuleList(
            [self.shift_type(**shift) for shift in shifts or PUBLISHED_SHIFTS]
        )
        self.restart = restart
        self.strong = MODELS.build(strong) if strong else None
        self.threshold = build_threshold(threshold)
        self.consistency_weight = consistency_weight
        self.sub_model = StochasticDepth(
            self.student, **(dict(drop_rate=0) if sub_model is None else sub_model)
        )

    # ------------------------------------------------------------------ shifts

    def start_run(self, max_iters: int, pass_iters: Sequence[int] = ()) -> None:
        """Learn how long the run is, and a shift; ValueError if an epoch's length is unknown."""
        super().start_run(max_iters, pass_iters)
        if self.shift_length != 'epoch':
            return
        if not self.pass_iters or not self.pass_iters[0]:
            raise ValueError(
                "`model.shift_length` is 'epoch', a pass over the labeled images, but "
                '`train_dataloader.sampler` cannot tell how long that is: use '
                'mmdmt.MultiSourceSampler with labeled images in each batch, or give a number of '
                'iterations'
            )
        self.shift_iters = self.pass_iters[0]

    @property
    def shift_number(self) -> int:
        """Number of the shift at this iteration, from 0."""
        return self.step // self.shift_iters

    @property
    def on_duty(self) -> int:
        """Number of the teacher that labels and follows the student at this iteration."""
        return self.shift_number % len(self.teacher_names)

    def teachers_to_update(self) -> List[str]:
        """Only the teacher on duty follows the student."""
        return [self.teacher_names[self.on_duty]]

    def teacher_step(self, name: str) -> int:
        """Number of updates a teacher has had, with ``restart`` those of the present shift."""
        if self.restart:
            return self.step % self.shift_iters
        rounds, inside = divmod(self.step, len(self.teacher_names) * self.shift_iters)
        inside -= self.teacher_names.index(name) * self.shift_iters
        return rounds * self.shift_iters + min(max(inside, 0), self.shift_iters)

    # ------------------------------------------------------------------ step

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised, mixed and implicit-consistency losses of one batch.

        Returns:
            dict[str, Tensor]: ``sup_*`` of the segmentor, ``unsup_mixed_loss``,
            ``unsup_consistency_loss``, and the health of the method: ``on_duty`` (number of the
            teacher), ``unsup_confident_share`` (weight of the mixed loss), ``unsup_confidence``
            (mean over valid pixels) and, with a ``consistency_weight``, ``unsup_keep_ratio``
            (share of valid pixels above the threshold) and ``unsup_agreement`` (share on which
            sub-model and teacher agree).
        """
        shift = self.shifts[self.shift_number % len(self.shifts)]
        teacher = self.network(self.teacher_names[self.on_duty])
        targets = pseudo_label(teacher, inputs['unsup_weak'], inputs['unsup_valid'])
        threshold = self.threshold(targets)
        padded = is_padded(data_samples['unsup'])
        weak, strong = self.views(inputs, padded)
        mixed, learned = shift(weak if shift.view == 'weak' else strong, targets, padded)
        mixed = self.normalized(mixed, learned.valid)
        losses, logits = self.forward_student('student', inputs, data_samples, mixed)
        losses.update(self.mixed_loss(logits, learned, threshold, shift.per_image))
        if self.consistency_weight:
            strong = self.normalized(strong, targets.valid)
            losses.update(self.consistency(strong, targets, threshold, data_samples))
        else:
            count = targets.valid.sum().clamp(min=1)
            losses['unsup_confidence'] = (targets.confidence * targets.valid).sum() / count
        losses['on_duty'] = targets.confidence.new_full((), self.on_duty)
        return losses

    def views(self, inputs: Dict[str, Tensor], padded: bool) -> Tuple[Tensor, Tensor]:
        """Weak and strong view of the unlabeled images as RGB in [0, 1]."""
        weak = inputs['unsup_rgb']
        if self.strong is None:
            return weak, weak
        return weak, self.strong(weak, inputs['unsup_valid'] if padded else None)

    def normalized(self, rgb: Tensor, valid: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them, padded as by the preprocessor."""
        return self.data_preprocessor.fill_padding(self.data_preprocessor.normalize(rgb), valid)

    def mixed_loss(
        self, logits: Tensor, targets: Targets, threshold: Union[float, Tensor], per_image: bool
    ) -> Dict[str, Tensor]:
        """Cross entropy of the mixed view, weighted by the share of confident pixels."""
        label, confidence = targets.label_with_ignore(), targets.confidence
        loss, stats = confidence_share_loss(logits, label, confidence, threshold, per_image)
        return dict(
            unsup_mixed_loss=loss * self.unsup_scale(),
            unsup_confident_share=stats['confident_share'],
        )

    def consistency(
        self,
        images: Tensor,
        targets: Targets,
        threshold: Union[float, Tensor],
        data_samples: Dict[str, list],
    ) -> Dict[str, Tensor]:
        """Cross entropy of a sub-model of the student on the strong view, on confident pixels."""
        logits = self.sub_model_logits(images)
        loss, stats = consistency_loss(logits, targets, threshold)
        return dict(unsup_consistency_loss=loss * self.consistency_weight * self.ramp(), **stats)

    def sub_model_logits(self, images: Tensor) -> Tensor:
        """Logits of a random sub-model, which leaves no trace in the running statistics."""
        with untracked_statistics(self.student), self.sub_model.sampled(self.step):
            return dense_logits(self.student, images)
