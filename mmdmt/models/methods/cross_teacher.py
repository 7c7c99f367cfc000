"""Cross Teacher Training: two students, each taught by the other's teacher."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Dict, List, Optional, Tuple

import torch
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor

from mmdmt.checks import refuse_unknown_keys
from mmdmt.models.forward import (
    dense_logits,
    linear_ramp,
    pseudo_label,
    stack_pixel_data,
    supervised_loss_and_logits,
    weighted_losses,
)
from mmdmt.models.losses.contrast.cross_contrast import CrossContrast, View, pairs
from mmdmt.models.losses.contrast.feature_tap import (
    CLASSIFIER,
    FeatureTap,
    feature_channels,
    find_classifier,
)
from mmdmt.models.losses.functional import confidence_share_loss
from mmdmt.models.methods.base import SemiSegmentor
from mmdmt.registry import MODELS

SIDES = ('l', 'r')
TAUGHT_BY = ('peer', 'own')
IGNORE = 255

#: Keys of ``semi_train_cfg``; others are refused, since a misspelled one would have no effect.
SETTINGS = frozenset(
    (
        'ema',
        'teacher_mode',
        'sup_weight',
        'unsup_weight',
        'threshold',
        'rampup_iters',
        'mix',
        'shared_mix',
        'taught_by',
        'contrast',
        'seeds',
    )
)

#: Label, confidence and validity of the pixels of one view, each (N_u, H, W).
Targets = Tuple[Tensor, Tensor, Tensor]


@MODELS.register_module()
class CrossTeacher(SemiSegmentor):
    """Two students with an EMA teacher each; every student learns from the **other** teacher.

    Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
    Neurocomputing 508, 2022 (arXiv 2209.01327). In each step, for student l (r likewise):

    1. Teacher r labels the weak view of the unlabeled images.
    2. A strong view drawn for student l alone is mixed (ClassMix) together with these labels.
    3. ``loss_l = CE(labeled) + unsup_weight * R * CE(mixed)``, where R is the share of pixels of
       the batch on which teacher r is surer than ``threshold``.
    4. Both contrastive modules (:class:`~mmdmt.models.losses.contrast.CrossContrast`)
       are added.

    The losses of both students are added and share one optimizer, but no gradient of one student's
    loss reaches the other. Networks are named ``student_l``, ``student_r``, ``teacher_l`` and
    ``teacher_r``; use these names in ``paramwise_cfg.custom_keys`` for learning rates of their own.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor, for both students (which then
            differ in their random initialization), or ``dict(l=..., r=...)`` with a config for
            each.
        semi_train_cfg (dict, optional): Besides the keys of :class:`SemiSegmentor`:

            - ``sup_weight`` (float): Weight of the supervised losses. Defaults to 1.
            - ``unsup_weight`` (float): Weight of the unsupervised losses. Defaults to 1.
            - ``threshold`` (float): Confidence that counts as sure. Defaults to 0.968.
            - ``rampup_iters`` (int): Iterations over which ``unsup_weight`` rises linearly from
              0. Defaults to 0.
            - ``mix`` (dict, optional): Config of a mixing view: ``dict(type='mmdmt.ClassMix')``
              as published on Cityscapes, ``dict(type='mmdmt.CutMix')`` or None.
            - ``shared_mix`` (bool): Whether both students get the same mixing mask (for ClassMix
              from the labels of the surer teacher), so that a pixel shows the same scene to both,
              which the low-level contrast supposes. False: each its own mask, from its own labels,
              as in the published code. Defaults to True.
            - ``taught_by`` (str): 'peer' (default), or 'own' for the ablation in which each
              student learns from its own teacher.
            - ``contrast`` (dict, optional): Arguments of ``CrossContrast`` but the first two;
              None switches both modules off, as the published code does in effect. Defaults to
              None.
            - ``seeds`` (Sequence[int], optional): Seeds from which the students are initialized.
              Defaults to the run's random numbers, which differ for both.
        semi_test_cfg (dict, optional): See :class:`SemiSegmentor`.
        data_preprocessor (dict, optional): Config of a :class:`SemiDataPreprocessor` with
            ``num_strong=2``.
        init_cfg (dict, optional): mmengine's initialization config.

    Raises:
        ValueError: If a setting is out of range or unknown, the students have different numbers
            of classes, or the preprocessor makes a single strong view.
    """

    def __init__(
        self,
        segmentor: dict,
        semi_train_cfg: Optional[dict] = None,
        semi_test_cfg: Optional[dict] = None,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(segmentor, semi_train_cfg, semi_test_cfg, data_preprocessor, init_cfg)
        cfg = self.semi_train_cfg
        self.sup_weight = cfg.get('sup_weight', 1.0)
        self.unsup_weight = cfg.get('unsup_weight', 1.0)
        self.threshold = cfg.get('threshold', 0.968)
        self.rampup_iters = cfg.get('rampup_iters', 0)
        self.mix = MODELS.build(cfg['mix']) if cfg.get('mix') else None
        self.shared_mix = cfg.get('shared_mix', True)
        self.taught_by = cfg.get('taught_by', 'peer')
        self._check()
        self.contrast = self._build_contrast(cfg.get('contrast'))

    def build_networks(self, segmentor: dict) -> None:
        """Build both students and their teachers."""
        seeds = self.semi_train_cfg.get('seeds')
        if seeds and len(seeds) != len(SIDES):
            raise ValueError(f'`semi_train_cfg.seeds` must be two seeds, got {seeds}')
        self.seeds = dict(zip(SIDES, seeds)) if seeds else {}
        for side, cfg in _per_side(segmentor).items():
            with _seeded(self.seeds.get(side)):
                self.add_student(f'student_{side}', cfg)
        for side, cfg in _per_side(segmentor).items():
            self.add_teacher(f'teacher_{side}', cfg, student=f'student_{side}')

    def _check(self) -> None:
        refuse_unknown_keys('semi_train_cfg', self.semi_train_cfg, SETTINGS)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f'`semi_train_cfg.threshold` must be in [0, 1], got {self.threshold}')
        if self.taught_by not in TAUGHT_BY:
            raise ValueError(
                f'`semi_train_cfg.taught_by` must be one of {TAUGHT_BY}, got {self.taught_by!r}'
            )
        classes = {side: self.student(side).out_channels for side in SIDES}
        if len(set(classes.values())) > 1:
            raise ValueError(f'both students need the same classes, `segmentor` has {classes}')
        if getattr(self.data_preprocessor, 'num_strong', 2) < 2:
            raise ValueError(
                '`data_preprocessor.num_strong` is 1: set it to 2, each student has a strong view '
                'of its own'
            )

    def _build_contrast(self, cfg: Optional[dict]) -> Optional[CrossContrast]:
        if not cfg:
            return None
        self.classifier = cfg.get('classifier', CLASSIFIER)
        channels = {
            side: feature_channels(find_classifier(self.student(side), self.classifier))
            for side in SIDES
        }
        return CrossContrast(channels, self.out_channels, **cfg)

    def student(self, side: str) -> BaseSegmentor:
        """Student 'l' or 'r'."""
        return self.network(f'student_{side}')

    def teacher(self, side: str) -> BaseSegmentor:
        """Teacher 'l' or 'r', which follows the student of that side."""
        return self.network(f'teacher_{side}')

    # ------------------------------------------------------------------------------- training

    def loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Losses of both students on one batch.

        Args:
            inputs (dict[str, Tensor]): ``sup`` (N_l, 3, H, W); ``unsup_weak``, ``unsup_strong``
                (for student l) and ``unsup_strong_1`` (for student r) (N_u, 3, H, W);
                ``unsup_valid`` (N_u, H, W).
            data_samples (dict[str, list]): ``sup``: ground truth of the labeled images.

        Returns:
            dict[str, Tensor]: For each side, ``sup_<side>.*`` of the segmentor,
            ``unsup_<side>_loss`` and, if contrast is on, ``contrast_<side>_high_loss`` and
            ``contrast_<side>_low_loss``. The health of the method: for each side
            ``unsup_<side>_confident_share`` (the weight R), ``unsup_<side>_agreement`` (share of
            pixels on which the student says what it is taught) and ``unsup_<side>_confidence``.
        """
        sup, sup_samples = inputs['sup'], data_samples['sup']
        if 'unsup_weak' not in inputs:
            return self._supervised_only(sup, sup_samples)
        views = self._strong_views_and_targets(inputs)
        out, seen = {}, {}
        for side, (strong, targets) in views.items():
            with self._tap(side) as tap:
                losses, logits = supervised_loss_and_logits(
                    self.student(side), sup, sup_samples, strong
                )
            out.update(weighted_losses(losses, self.sup_weight, f'sup_{side}.'))
            out.update(self._consistency(side, logits, *targets))
            seen[side] = (tap, targets)
        if self.contrast is not None:
            out.update(self._contrast(sup, sup_samples, seen))
        return out

    def _supervised_only(self, sup: Tensor, samples: list) -> Dict[str, Tensor]:
        out = {}
        for side in SIDES:
            losses = self.student(side).loss(sup, samples)
            out.update(weighted_losses(losses, self.sup_weight, f'sup_{side}.'))
        return out

    def _strong_views_and_targets(
        self, inputs: Dict[str, Tensor]
    ) -> Dict[str, Tuple[Tensor, Targets]]:
        """The unlabeled input of each student, and what it is to learn on its pixels."""
        weak, valid = inputs['unsup_weak'], inputs['unsup_valid']
        labels = {side: pseudo_label(self.teacher(side), weak) for side in SIDES}
        strong = dict(zip(SIDES, (inputs['unsup_strong'], inputs['unsup_strong_1'])))
        views = {}
        for side, peer in pairs(SIDES):
            teacher = peer if self.taught_by == 'peer' else side
            views[side] = (strong[side], (*labels[teacher], valid))
        return views if self.mix is None else self._mixed(views)

    def _mixed(self, views: Dict[str, Tuple[Tensor, Targets]]) -> Dict[str, Tuple[Tensor, Targets]]:
        """Mix each view with its targets."""
        if not self.shared_mix:
            return {side: self._mix([view], view[1][0])[0] for side, view in views.items()}
        (label, confidence, _), (other, other_confidence, _) = [view[1] for view in views.values()]
        surer = torch.where(confidence >= other_confidence, label, other)
        return dict(zip(views, self._mix(list(views.values()), surer)))

    def _mix(
        self, views: List[Tuple[Tensor, Targets]], label: Tensor
    ) -> List[Tuple[Tensor, Targets]]:
        """Mix all views with one mask, which ClassMix makes from ``label``."""
        flat = [tensor for strong, targets in views for tensor in (strong, *targets)]
        mixed = self.mix(*flat, label=label, valid=views[0][1][2]).tensors
        return [(mixed[i], tuple(mixed[i + 1 : i + 4])) for i in range(0, len(mixed), 4)]

    def _consistency(
        self, side: str, logits: Tensor, label: Tensor, confidence: Tensor, valid: Tensor
    ) -> Dict[str, Tensor]:
        target = label.masked_fill(~valid, IGNORE)
        loss, stats = confidence_share_loss(
            logits, target, confidence, self.threshold, per_image=False, ignore_index=IGNORE
        )
        with torch.no_grad():
            count = valid.sum().clamp(min=1)
            stats = dict(
                stats,
                agreement=((logits.argmax(dim=1) == label) & valid).sum() / count,
                confidence=(confidence * valid).sum() / count,
            )
        stats['loss'] = loss * (self.unsup_weight * self._ramp())
        return {f'unsup_{side}_{name}': value for name, value in stats.items()}

    def _contrast(
        self, sup: Tensor, sup_samples: list, seen: Dict[str, Tuple[FeatureTap, Targets]]
    ) -> Dict[str, Tensor]:
        """Both contrastive losses; then the banks learn the labeled images of this step."""
        sup_label = stack_pixel_data(sup_samples, 'gt_sem_seg')
        views = {
            side: View(tap.features, tap.logits, sup_label, *targets)
            for side, (tap, targets) in seen.items()
        }
        losses = self.contrast(views)
        for side in SIDES:
            with torch.no_grad(), FeatureTap(self.teacher(side), self.classifier) as tap:
                dense_logits(self.teacher(side), sup)
            self.contrast.remember(side, tap.features, tap.logits, sup_label)
        return losses

    def _tap(self, side: str):
        if self.contrast is None:
            return nullcontext()
        return FeatureTap(self.student(side), self.classifier)

    def _ramp(self) -> float:
        """Factor of the unsupervised weight at this step, in [0, 1]."""
        return linear_ramp(self._ema_steps[0], self.rampup_iters)

    # ------------------------------------------------------------------------------- networks

    def init_weights(self) -> None:
        """Initialize each student from its seed, then make the teachers copies."""
        for side in SIDES:
            with _seeded(self.seeds.get(side)):
                self.student(side).init_weights()
        self.reset_teachers()
        self._is_init = True

    def reset_teachers(self) -> None:
        """Make every teacher a copy of its student, with its projection head."""
        super().reset_teachers()
        if self.contrast is not None:
            self.contrast.reset_teachers()

    def update_teacher(self, name: str) -> None:
        """Move one teacher, and its projection head, towards its student."""
        step = self._ema_steps[self.teacher_names.index(name)]
        super().update_teacher(name)
        if self.contrast is not None:
            self.contrast.update_teacher(name[-1], self.ema, step)


def _per_side(segmentor: dict) -> Dict[str, dict]:
    """A config for each side."""
    if 'type' in segmentor:
        return dict.fromkeys(SIDES, segmentor)
    if set(segmentor) != set(SIDES):
        raise ValueError(
            '`segmentor` must be the config of a segmentor, with a `type`, or '
            f'dict(l=..., r=...) with one for each student; got the keys {sorted(segmentor)}'
        )
    return {side: segmentor[side] for side in SIDES}


@contextmanager
def _seeded(seed: Optional[int]) -> Iterator[None]:
    """Random numbers of their own inside a ``with`` block, if there is a seed."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
