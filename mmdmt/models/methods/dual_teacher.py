"""Dual Teacher: temporary teachers that take turns."""

import warnings
from contextlib import ExitStack
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torchvision.transforms import ColorJitter, Compose, RandomGrayscale

from mmdmt.checks import refuse_unknown_keys
from mmdmt.models.forward import (
    dense_logits,
    linear_ramp,
    pseudo_label,
    stack_pixel_data,
    supervised_loss_and_logits,
    weighted_losses,
)
from mmdmt.models.losses.functional import confidence_share_loss, masked_consistency_loss
from mmdmt.models.methods.base import SemiSegmentor
from mmdmt.models.stochastic_depth import (
    StochasticDepth,
    disable_drop_path,
    untracked_statistics,
)
from mmdmt.registry import MODELS

IGNORE = 255

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

#: Where the published code differs from its paper's intent; see ``docs/dual_teacher.md``.
RELEASED_SWITCHES = {
    'restart_steps': 'a teacher counts its steps from 0 in every shift, so that the first step of '
    'a shift overwrites it by the student',
    'jitter_normalized': 'the strong view is made of normalized images, clipped to [0, 1], with '
    'one draw for the batch',
    'unmixed_confidence': 'in a shift with per-image weights the confidence is not mixed along '
    'with image and label',
    'quantized_confidence': 'in such a shift the confidence has 8 bits, so that 0.95 is 243 / 255',
    'labeled_ignore_mask': 'implicit consistency leaves out the pixels that are ignored in the '
    'labeled image at the same place of the batch',
    'train_mode_teachers': 'teachers label with batch statistics and dropout, and keep their own '
    'running statistics',
    'plain_second_pass': 'the second pass skips no residual blocks (DropPath stays) and moves the '
    'running statistics as the first one does',
}

SETTINGS = {
    'sup_weight',
    'unsup_weight',
    'consistency_weight',
    'threshold',
    'rampup_iters',
    'num_teachers',
    'shifts',
    'sub_model',
    'released_behavior',
    'ema',
    'teacher_mode',
}


class Targets(NamedTuple):
    """What a teacher says of a batch of images.

    Attributes:
        label: (N, H, W) long.
        confidence: (N, H, W) in [0, 1].
        valid: (N, H, W) bool, False on padding.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor


class Shift(nn.Module):
    """What a teacher's time on duty looks like: the mixed view and the weight of its loss.

    Args:
        mix (dict, optional): Config of a mixing view, such as ``dict(type='mmdmt.CutMix')``.
        view (str): What is mixed: the 'weak' or the 'strong' (default) view.
        strong (dict, optional): Config of an augmentation of the mixed images, called on RGB
            images in [0, 1].
        flip_prob (float): Probability, per mixed image, of a horizontal flip. Defaults to 0.
        per_image (bool): Whether each image is weighted by its own share of confident pixels
            instead of the batch's. Defaults to False.

    Raises:
        ValueError: If ``view`` or ``flip_prob`` is out of range.
    """

    def __init__(
        self,
        mix: Optional[dict] = None,
        view: str = 'strong',
        strong: Optional[dict] = None,
        flip_prob: float = 0.0,
        per_image: bool = False,
    ) -> None:
        super().__init__()
        if view not in ('weak', 'strong'):
            raise ValueError(f"`shifts.view` must be 'weak' or 'strong', got {view!r}")
        if not 0 <= flip_prob <= 1:
            raise ValueError(f'`shifts.flip_prob` must be in [0, 1], got {flip_prob}')
        self.mix = MODELS.build(mix) if mix else None
        self.view = view
        self.strong = MODELS.build(strong) if strong else None
        self.flip_prob = flip_prob
        self.per_image = per_image

    def forward(
        self, images: Tensor, targets: Targets, preprocessor: nn.Module, padded: bool
    ) -> Tuple[Tensor, Targets]:
        """Mix, augment and flip.

        Args:
            images (Tensor): Normalized images, (N, 3, H, W).
            targets (Targets): The teacher's labels of them.
            preprocessor (nn.Module): The data preprocessor, which knows the normalization.
            padded (bool): Whether any image has padding.

        Returns:
            tuple[Tensor, Targets]: The images and the labels on their pixels.
        """
        tensors = (images, *targets)
        if self.mix is not None:
            tensors = self.mix(*tensors, label=targets.label, valid=targets.valid).tensors
        images, targets = tensors[0], Targets(*tensors[1:])
        if self.strong is not None:
            rgb = preprocessor.denormalize(images)
            augmented = self.strong(rgb, targets.valid if padded else None)
            augmented = preprocessor.normalize(augmented)
            keep = targets.valid[:, None]
            images = torch.where(keep, augmented, images) if padded else augmented
        if self.flip_prob:
            images, *flipped = _flip(self.flip_prob, images, *targets)
            targets = Targets(*flipped)
        return images, targets


@MODELS.register_module()
class DualTeacher(SemiSegmentor):
    """One student, and temporary teachers of which one at a time labels for it and follows it.

    Na et al., "Switching Temporary Teachers for Semi-Supervised Semantic Segmentation", NeurIPS
    2023. A single EMA teacher becomes its student's mirror; here a teacher follows the student
    only while it is on duty, and :class:`~mmdmt.engine.hooks.SwitchTeacherHook` puts the next one
    on duty after each shift, which has a strong augmentation of its own. A step is::

        label, confidence = teacher on duty (weak view)
        loss = sup_weight * CE(student(labeled))
             + ramp * unsup_weight * share of sure pixels * CE(student(mixed view), mixed label)
             + ramp * consistency_weight * sum(1[c >= threshold] CE(sub-model(strong view), label))
                                           / #valid pixels

    in three forward passes: the student on labeled and mixed images together, a random sub-model
    of it on the strong view ("implicit consistency"), the teacher on the weak view. The sub-model
    is the student without some residual blocks, or under its own DropPath.

    By default this is the paper's intent; ``released_behavior`` brings back what its published
    code does otherwise.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        semi_train_cfg (dict, optional): Besides ``ema`` and ``teacher_mode`` of
            :class:`SemiSegmentor`:

            - ``num_teachers`` (int): 2 by default; 1 is the ablation in which a single EMA teacher
              works all shifts.
            - ``shifts`` (list[dict]): Arguments of :class:`Shift`, used in turn. With as many
              shifts as teachers, each teacher has its own. Defaults to :data:`PUBLISHED_SHIFTS`.
            - ``threshold`` (float): Confidence of a sure pixel, in [0, 1]. Defaults to 0.95.
            - ``sup_weight``, ``unsup_weight``, ``consistency_weight`` (float): Weights of the
              three losses. Default to 1, 1 and 0.2. Without weight the third costs no pass.
            - ``rampup_iters`` (int): Iterations over which the weights of the last two rise
              linearly from 0. Defaults to 0.
            - ``sub_model`` (dict, optional): Arguments of
              :class:`~mmdmt.models.stochastic_depth.StochasticDepth`; None: the full student.
            - ``released_behavior`` (bool | dict): True, or a dict of
              :data:`RELEASED_SWITCHES`. Defaults to False.
        semi_test_cfg (dict, optional): See :class:`SemiSegmentor`; networks are ``student``,
            ``teacher_0``, ``teacher_1``, ... ``predict_on`` defaults to the student, as published.
        data_preprocessor (dict, optional): Config of a :class:`SemiDataPreprocessor`.
        init_cfg (dict, optional): mmengine's initialization config.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    default_predict_on = 'student'

    def __init__(
        self,
        segmentor: dict,
        semi_train_cfg: Optional[dict] = None,
        semi_test_cfg: Optional[dict] = None,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        cfg = dict(semi_train_cfg or {})
        refuse_unknown_keys('semi_train_cfg', cfg, SETTINGS)
        released = _released_switches(cfg.get('released_behavior', False))
        if released['train_mode_teachers']:
            cfg.update(teacher_mode='train', ema=dict(cfg.get('ema', {}), buffers='keep'))
        super().__init__(segmentor, cfg, semi_test_cfg, data_preprocessor, init_cfg)
        self.released = released
        self.sup_weight = cfg.get('sup_weight', 1.0)
        self.unsup_weight = cfg.get('unsup_weight', 1.0)
        self.consistency_weight = cfg.get('consistency_weight', 0.2)
        self.threshold = cfg.get('threshold', 0.95)
        self.rampup_iters = cfg.get('rampup_iters', 0)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f'`semi_train_cfg.threshold` must be in [0, 1], got {self.threshold}')
        shifts = cfg.get('shifts') or PUBLISHED_SHIFTS
        self.shifts = nn.ModuleList([Shift(**shift) for shift in shifts])
        self.sub_model = self._build_sub_model(cfg.get('sub_model', {}))
        self.normalized_jitter = Compose([ColorJitter(0.5, 0.5, 0.5, 0.25), RandomGrayscale(0.2)])
        self.switch_hook_attached = False
        # As for the teachers' steps: buffers for checkpoints, mirrors that cost no look at a GPU.
        for name in ('on_duty', 'shift_number', 'student_steps'):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))
        self._on_duty = self._shift_number = self._student_steps = 0

    def build_networks(self, segmentor: dict) -> None:
        """Build ``student`` and ``teacher_0``, ``teacher_1``, ...; teachers drop no paths."""
        count = self.semi_train_cfg.get('num_teachers', 2)
        if not isinstance(count, int) or count < 1:
            raise ValueError(
                f'`semi_train_cfg.num_teachers` must be a positive integer, got {count!r}: 2 as '
                'published, or 1 for the ablation without switching'
            )
        self.add_student('student', segmentor)
        for index in range(count):
            self.add_teacher(f'teacher_{index}', segmentor, student='student')
            disable_drop_path(self.network(f'teacher_{index}'))

    def _build_sub_model(self, cfg: Optional[dict]) -> Optional[StochasticDepth]:
        if cfg is None or self.released['plain_second_pass']:
            return None
        sub_model = StochasticDepth(self.student, **cfg)
        if not sub_model.blocks and not sub_model.uses_drop_path:
            warnings.warn(
                'The student has no residual block with an identity shortcut and no active '
                'DropPath: implicit consistency uses the full student. Name its blocks in '
                '`semi_train_cfg.sub_model.block_types`, or set `sub_model=None`',
                stacklevel=3,
            )
        return sub_model

    # ------------------------------------------------------------------ shifts

    @property
    def teacher_on_duty(self) -> str:
        """Name of the teacher that labels and follows the student now."""
        return self.teacher_names[self._on_duty]

    def switch_teacher(self) -> None:
        """Begin the next teacher's shift; called by ``SwitchTeacherHook``."""
        self._shift_number += 1
        self._on_duty = self._shift_number % len(self.teacher_names)
        self.shift_number.fill_(self._shift_number)
        self.on_duty.fill_(self._on_duty)
        if self.released['restart_steps']:
            self._ema_steps[self._on_duty] = 0
            self.ema_steps[self._on_duty] = 0

    def teachers_to_update(self) -> List[str]:
        """Only the teacher on duty follows the student."""
        return [self.teacher_on_duty]

    def update_teachers(self) -> None:
        """Move the teacher on duty, and count the step."""
        super().update_teachers()
        self._student_steps += 1
        self.student_steps += 1

    def _warn_without_hook(self) -> None:
        super()._warn_without_hook()
        if self.training and not self.switch_hook_attached and len(self.teacher_names) > 1:
            self.switch_hook_attached = True
            warnings.warn(
                "DualTeacher trains without dict(type='mmdmt.SwitchTeacherHook') in `custom_hooks`:"
                ' unless your own loop calls `switch_teacher()`, teacher_0 stays on duty for ever',
                stacklevel=3,
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        counters = (self.on_duty, self.shift_number, self.student_steps)
        self._on_duty, self._shift_number, self._student_steps = map(int, counters)

    # ------------------------------------------------------------------ step

    def loss(
        self, inputs: Dict[str, Tensor], data_samples: Dict[str, List[SegDataSample]]
    ) -> Dict[str, Tensor]:
        """Supervised, mixed and implicit-consistency losses of one batch.

        Args:
            inputs (dict[str, Tensor]): ``sup`` (N_l, 3, H, W), ``unsup_weak`` and
                ``unsup_strong`` (N_u, 3, H, W), ``unsup_valid`` (N_u, H, W).
            data_samples (dict[str, list]): ``sup``: ground truth of the labeled images;
                ``unsup``: where unlabeled images are padded.

        Returns:
            dict[str, Tensor]: ``sup_*`` of the segmentor, ``unsup_mixed_loss``,
            ``unsup_consistency_loss``, and the health of the method: ``on_duty`` (number of the
            teacher), ``unsup_confident_share`` (weight of the mixed loss), ``unsup_confidence``
            (mean over valid pixels), ``unsup_keep_ratio`` (share of valid pixels above the
            threshold) and ``unsup_agreement`` (share on which sub-model and teacher say the same).
        """
        if 'unsup_weak' not in inputs:
            losses = self.student.loss(inputs['sup'], data_samples['sup'])
            return weighted_losses(losses, self.sup_weight, 'sup_')
        shift = self.shifts[self._shift_number % len(self.shifts)]
        teacher = self.network(self.teacher_on_duty)
        said = Targets(*pseudo_label(teacher, inputs['unsup_weak']), inputs['unsup_valid'])
        strong = self._strong_view(inputs)
        padded = _is_padded(data_samples.get('unsup'))
        view = inputs['unsup_weak'] if shift.view == 'weak' else strong
        mixed, targets = shift(view, said, self.data_preprocessor, padded)
        losses, logits = supervised_loss_and_logits(
            self.student, inputs['sup'], data_samples['sup'], mixed
        )
        losses = weighted_losses(losses, self.sup_weight, 'sup_')
        losses.update(self._mixed_loss(logits, targets, said, shift))
        losses.update(self._implicit_consistency(strong, said, data_samples))
        losses['on_duty'] = self.on_duty.float()
        return losses

    def _strong_view(self, inputs: Dict[str, Tensor]) -> Tensor:
        if self.released['jitter_normalized']:
            # torchvision clips whatever it adjusts to [0, 1].
            return self.normalized_jitter(inputs['unsup_weak'])
        return inputs['unsup_strong']

    def _mixed_loss(
        self, logits: Tensor, targets: Targets, said: Targets, shift: Shift
    ) -> Dict[str, Tensor]:
        """Cross entropy of the mixed view, weighted by the share of sure pixels."""
        confidence = targets.confidence
        if shift.per_image and self.released['unmixed_confidence']:
            confidence = said.confidence
        if shift.per_image and self.released['quantized_confidence']:
            confidence = (confidence * 255).floor() / 255
        label = targets.label.masked_fill(~targets.valid, IGNORE)
        loss, stats = confidence_share_loss(
            logits, label, confidence, self.threshold, shift.per_image, IGNORE
        )
        return dict(
            unsup_mixed_loss=loss * self.unsup_weight * self._ramp(),
            unsup_confident_share=stats['confident_share'],
        )

    def _implicit_consistency(
        self, strong: Tensor, said: Targets, data_samples: Dict[str, List[SegDataSample]]
    ) -> Dict[str, Tensor]:
        """Cross entropy of a sub-model of the student on the strong view, on sure pixels."""
        count = said.valid.sum().clamp(min=1)
        confidence = (said.confidence * said.valid).sum() / count
        if self.consistency_weight == 0:
            return dict(unsup_confidence=confidence)
        valid = said.valid
        if self.released['labeled_ignore_mask']:
            valid = valid & _learned_pixels(data_samples['sup'], valid)
        logits = self._sub_model_logits(strong)
        loss, stats = masked_consistency_loss(
            logits, said.label, said.confidence, self.threshold, valid
        )
        agree = (logits.detach().argmax(dim=1) == said.label) & said.valid
        return dict(
            unsup_consistency_loss=loss * self.consistency_weight * self._ramp(),
            unsup_confidence=confidence,
            unsup_keep_ratio=stats['keep_ratio'],
            unsup_agreement=agree.sum() / count,
        )

    def _sub_model_logits(self, images: Tensor) -> Tensor:
        """Logits of a random sub-model, which leaves no trace in the running statistics."""
        with ExitStack() as stack:
            if not self.released['plain_second_pass']:
                stack.enter_context(untracked_statistics(self.student))
            if self.sub_model is not None:
                stack.enter_context(self.sub_model.sampled())
            return dense_logits(self.student, images)

    def _ramp(self) -> float:
        """Factor of the unsupervised weights at this step, in [0, 1]."""
        return linear_ramp(self._student_steps, self.rampup_iters)


def _flip(prob: float, *tensors: Tensor) -> List[Tensor]:
    """Flip the same random images of aligned (N, *, W) tensors from left to right."""
    chosen = torch.rand(len(tensors[0]), device='cpu') < prob
    chosen = chosen.to(tensors[0].device, non_blocking=True)
    return [
        torch.where(chosen.view(-1, *[1] * (tensor.ndim - 1)), tensor.flip(-1), tensor)
        for tensor in tensors
    ]


def _is_padded(samples: Optional[List[SegDataSample]]) -> bool:
    """Whether any sample has padding; True where that is unknown."""
    paddings = [sample.metainfo.get('padding_size') for sample in samples or []]
    return not paddings or any(padding is None or any(padding) for padding in paddings)


def _learned_pixels(samples: List[SegDataSample], like: Tensor) -> Tensor:
    """Pixels of the labeled images that are not ignored, (N, H, W) bool."""
    label = stack_pixel_data(samples, 'gt_sem_seg')
    if label.shape != like.shape:
        raise ValueError(
            '`released_behavior.labeled_ignore_mask` pairs labeled and unlabeled images, but the '
            f'batch has labels {tuple(label.shape)} and unlabeled images {tuple(like.shape)}: set '
            '`train_dataloader.sampler.source_ratio=[1, 1]` and an even batch size'
        )
    return label != IGNORE


def _released_switches(setting: Union[bool, dict]) -> Dict[str, bool]:
    """The switches as a full dict."""
    if isinstance(setting, bool):
        return dict.fromkeys(RELEASED_SWITCHES, setting)
    refuse_unknown_keys('semi_train_cfg.released_behavior', setting, RELEASED_SWITCHES)
    return dict(dict.fromkeys(RELEASED_SWITCHES, False), **setting)
