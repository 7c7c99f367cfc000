"""Cross Teacher Training: two students, each taught by the other's teacher."""

from contextlib import nullcontext
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from mmdmt.checks import build_part, check_choice, check_range
from mmdmt.models.forward import Targets, pseudo_label, stack_pixel_data
from mmdmt.models.losses.consistency import agreement_stats
from mmdmt.models.losses.contrast.cross_contrast import CrossContrast, View
from mmdmt.models.losses.functional import confidence_share_loss
from mmdmt.models.pair import PEERS, students_of
from mmdmt.models.views.mix import Mixing
from mmdmt.registry import MODELS

from .base import SemiSegmentor

TAUGHT_BY = ('peer', 'own')
UNLABELED = ('unsup_weak', 'unsup_rgb', 'unsup_valid')  # what a strong view is made of


@MODELS.register_module()
class CrossTeacher(SemiSegmentor):
    """Two students with an EMA teacher each; every student learns from the **other** teacher.

    Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
    Neurocomputing 508, 2022 (arXiv 2209.01327). In each step, for student l (r likewise):

    1. Teacher r labels the weak view of the unlabeled images.
    2. A strong view drawn for student l alone is mixed (ClassMix) together with these labels.
    3. ``loss_l = CE(labeled) + unsup_weight * R * CE(mixed)``, where R is the share of pixels of
       the batch whose label has a confidence of at least ``threshold``.
    4. Both contrastive modules (:class:`~mmdmt.models.losses.contrast.CrossContrast`) are added.

    The losses of both students are added and share one optimizer, but no gradient of one student's
    loss reaches the other. Networks are named ``student_l``, ``student_r``, ``teacher_l`` and
    ``teacher_r``; use these names in ``paramwise_cfg.custom_keys`` for learning rates of their own.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor, for both students (which then
            differ in their random initialization), or ``dict(l=..., r=...)`` with a config for
            each.
        strong (dict, optional): Config of the strong augmentation, which is drawn once for each
            student. Defaults to the weak view.
        mix (dict, optional): Config of a mixing view: ``dict(type='mmdmt.ClassMix')`` as
            published on Cityscapes, or ``dict(type='mmdmt.CutMix')``. Defaults to none.
        shared_mix (bool): Whether both students get the same mixing mask (for ClassMix from the
            labels of the more confident teacher), so that a pixel shows the same scene to both,
            which the low-level contrast supposes. False: each its own mask, from its own labels,
            as in the released code. Defaults to True.
        mix_first (bool): Whether images are mixed before ``strong`` augments them, as published.
            False: each view is augmented by itself first, as in other methods, so that the parts
            of a mixed image differ in their colors. Defaults to False.
        threshold (float): Confidence that a label needs to count in R. Defaults to 0.968.
        taught_by (str): 'peer' (default), or 'own' for the ablation in which each student learns
            from its own teacher.
        contrast (dict, optional): Arguments of ``CrossContrast`` but the first. Defaults to None,
            which switches both modules off, as the released code does in effect.
        **common: Settings of :class:`SemiSegmentor`.
    """

    def __init__(
        self,
        segmentor: dict,
        *,
        strong: Optional[dict] = None,
        mix: Optional[dict] = None,
        shared_mix: bool = True,
        mix_first: bool = False,
        threshold: float = 0.968,
        taught_by: str = 'peer',
        contrast: Optional[dict] = None,
        **common,
    ) -> None:
        check_range('threshold', threshold, 0, 1)
        check_choice('taught_by', taught_by, TAUGHT_BY)
        teachers = {f'teacher_{side}': f'student_{side}' for side in PEERS}
        super().__init__(students_of(segmentor), teachers, **common)
        self.strong = MODELS.build(strong) if strong else None
        self.mix = MODELS.build(mix) if mix else None
        self.shared_mix = shared_mix
        self.mix_first = mix_first
        self.threshold = threshold
        self.taught_by = taught_by
        self.contrast = None
        if contrast:
            networks = {side: self.network(f'student_{side}') for side in PEERS}
            self.contrast = build_part('contrast', CrossContrast, contrast, networks)

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Losses of both students.

        For each side ``sup_<side>.*`` of the segmentor, ``unsup_<side>_loss``, and with contrast
        ``contrast_<side>_high_loss`` and ``contrast_<side>_low_loss``. Statistics of each side:
        ``unsup_<side>_confident_share`` (the weight R), ``unsup_<side>_agreement`` and
        ``unsup_<side>_confidence``.
        """
        losses, seen = {}, {}
        for side, (view, targets) in self._views(inputs, data_samples).items():
            name = f'student_{side}'
            with self.contrast.tap(self.network(name)) if self.contrast else nullcontext() as tap:
                found, logits = self.forward_student(name, inputs, data_samples, view)
            losses.update(found, **self._consistency(side, logits, targets))
            seen[side] = tap, targets
        if self.contrast is not None:
            losses.update(self._contrast(seen, inputs['sup'], data_samples['sup']))
        return losses

    def _views(
        self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]
    ) -> Dict[str, Tuple[Tensor, Targets]]:
        """The unlabeled images of each student, and what it is to learn on their pixels."""
        weak, valid = inputs['unsup_weak'], inputs['unsup_valid']
        labels = {
            side: pseudo_label(self.network(f'teacher_{side}'), weak, valid) for side in PEERS
        }
        taught = {
            side: labels[peer if self.taught_by == 'peer' else side] for side, peer in PEERS.items()
        }
        if self.mix is None:
            return {side: (self._strong(inputs, data_samples), taught[side]) for side in PEERS}
        views = {}
        for side, mixing in self._mixings(taught).items():
            if self.mix_first:
                mixed = {name: mixing(inputs[name])[0] for name in UNLABELED}
                view = self._strong(mixed, data_samples)
            else:
                (view,) = mixing(self._strong(inputs, data_samples))
            views[side] = view, Targets(*mixing(*taught[side]))
        return views

    def _strong(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Tensor:
        return self.strong_view(self.strong, inputs, data_samples)

    def _mixings(self, taught: Dict[str, Targets]) -> Dict[str, Mixing]:
        """How the images of each student are mixed."""
        if not self.shared_mix:
            return {side: self.mix.draw(targets) for side, targets in taught.items()}
        one, other = taught.values()
        label = torch.where(one.confidence >= other.confidence, one.label, other.label)
        return dict.fromkeys(taught, self.mix.draw(one._replace(label=label)))

    def _consistency(self, side: str, logits: Tensor, targets: Targets) -> Dict[str, Tensor]:
        """Cross entropy on all pixels, weighted by the share of confident ones."""
        label, confidence = targets.label_with_ignore(), targets.confidence
        loss, stats = confidence_share_loss(
            logits, label, confidence, self.threshold, per_image=False
        )
        return {
            f'unsup_{side}_loss': loss * self.unsup_scale(),
            f'unsup_{side}_confident_share': stats['confident_share'],
            f'unsup_{side}_keep_ratio': stats['confident_share'],  # its name in other methods
            **agreement_stats(logits, targets, f'unsup_{side}'),
        }

    def _contrast(
        self, seen: Dict[str, tuple], sup: Tensor, sup_samples: list
    ) -> Dict[str, Tensor]:
        """Both contrastive losses; then the banks take in the labeled images of this step."""
        label = stack_pixel_data(sup_samples, 'gt_sem_seg')
        views = {
            side: View(tap.features, tap.logits, label, *targets)
            for side, (tap, targets) in seen.items()
        }
        losses = self.contrast(views)
        for side in PEERS:
            self.contrast.remember(side, self.network(f'teacher_{side}'), sup, label)
        return losses

    def reset_teachers(self) -> None:
        """Make every teacher a copy of its student, with its projection head."""
        super().reset_teachers()
        if self.contrast is not None:
            self.contrast.teachers.load_state_dict(self.contrast.students.state_dict())

    def update_teacher(self, name: str) -> None:
        """Move one teacher, and its projection head, towards its student."""
        super().update_teacher(name)
        if self.contrast is not None:
            heads = (group[name[-1]] for group in (self.contrast.teachers, self.contrast.students))
            self.ema.update(*heads, self.teacher_step(name))
