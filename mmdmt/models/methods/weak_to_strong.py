"""Base of the methods that learn labels of a weak view on a strong one."""

import logging
from collections.abc import Sequence
from typing import Any, Dict, Optional, Tuple, Union

from mmengine.logging import print_log
from torch import Tensor

from mmdmt.checks import build_part, check_choice
from mmdmt.models.forward import Targets
from mmdmt.models.losses.consistency import consistency_loss, mean_over_views
from mmdmt.models.losses.functional import NORMALIZERS, masked_cross_entropy
from mmdmt.models.losses.region import UnsupervisedLoss
from mmdmt.models.previous import PreviousStudents
from mmdmt.models.thresholds import build_threshold
from mmdmt.registry import MODELS

from .base import SemiSegmentor


class WeakToStrong(SemiSegmentor):
    """Settings that methods with hard labels, a threshold and strong views have in common.

    Args:
        students, teachers: As of :class:`.SemiSegmentor`.
        strong (dict, optional): Config of the strong augmentation. Defaults to the weak view.
        mix (dict, optional): Config of a mixing view, such as ``dict(type='mmdmt.CutMix')``.
        threshold (float | dict): Confidence a pixel needs, in [0, 1], or the config of a threshold
            that adapts. Defaults to 0.95.
        normalizer (str): What the sum over confident pixels is divided by, see
            :func:`~mmdmt.models.losses.functional.masked_cross_entropy`. Defaults to 'valid'.
        unsup_loss (str | dict | list): What is learned from confident labels, see
            :class:`~mmdmt.models.losses.region.UnsupervisedLoss`. Defaults to 'ce'.
        previous (dict, optional): Arguments of :class:`.PreviousStudents`, which label besides
            (PrevMatch); an empty dict has all defaults. Only methods that say so have it.
        **common: Settings of :class:`.SemiSegmentor`.

    Raises:
        ValueError: If a setting is out of range, or the method has no ``previous``.
    """

    #: Whether the method learns the labels of earlier students, see :meth:`add_previous`.
    takes_previous = False

    def __init__(
        self,
        students: Dict[str, dict],
        teachers: Optional[Dict[str, str]] = None,
        *,
        strong: Optional[dict] = None,
        mix: Optional[dict] = None,
        threshold: Union[float, dict] = 0.95,
        normalizer: str = 'valid',
        unsup_loss: Union[str, dict, Sequence] = 'ce',
        previous: Optional[dict] = None,
        **common,
    ) -> None:
        super().__init__(students, teachers, **common)
        self.strong = MODELS.build(strong) if strong else None
        self.mix = MODELS.build(mix) if mix else None
        self.threshold = build_threshold(threshold)
        check_choice('normalizer', normalizer, NORMALIZERS)
        self.normalizer = normalizer
        self.unsup_loss = (
            masked_cross_entropy if unsup_loss == 'ce' else UnsupervisedLoss(unsup_loss)
        )
        self._warn_of_idle_threshold(threshold)
        if previous is not None and not self.takes_previous:
            raise ValueError(f'{type(self).__name__} cannot use `previous`: remove it')
        given = previous is not None
        self.previous = build_part('previous', PreviousStudents, previous) if given else None

    def _warn_of_idle_threshold(self, threshold: Union[float, dict]) -> None:
        chance = 1 / max(2, self.num_classes)
        if isinstance(threshold, (int, float)) and 0 < threshold <= chance:
            print_log(
                f'`threshold` {threshold} keeps every pixel: with {self.num_classes} classes the '
                f'most probable one has at least {chance:.2g}',
                'current',
                logging.WARNING,
            )

    def consistency(self, logits: Tensor, targets: Targets, threshold: Any, prefix: str = 'unsup'):
        """:func:`.consistency_loss` with ``normalizer`` and ``unsup_loss`` of the method."""
        return consistency_loss(
            logits, targets, threshold, self.normalizer, prefix, self.unsup_loss
        )

    def mean_consistency(self, logits: Any, targets: Any, threshold: Any):
        """:func:`.mean_over_views` of :meth:`consistency`."""
        return mean_over_views(logits, targets, threshold, self.normalizer, self.unsup_loss)

    def mixed_view(
        self,
        inputs: Dict[str, Tensor],
        data_samples: Dict[str, list],
        targets: Targets,
        pasted: Optional[Targets] = None,
        previous: Optional[Targets] = None,
    ) -> Tuple[Tensor, Targets, Optional[Targets]]:
        """A new strong view (N_u, 3, H, W), mixed together with what is to be learned on it.

        Pixels of a partner have its targets, or those of ``pasted`` where they are given. The last
        of what is returned are the mixed targets of ``previous``, if given.
        """
        view = self.strong_view(self.strong, inputs, data_samples)
        if self.mix is None:
            return view, targets, previous
        mixing = self.mix.draw(targets)
        earlier = previous and mixing.targets(previous, previous)
        return mixing(view)[0], mixing.targets(targets, pasted or targets), earlier

    def previous_targets(self, inputs: Dict[str, Tensor]) -> Optional[Targets]:
        """What earlier students label on the weak view; None as long as there are none."""
        if not self.previous:  # its length is the number of copies
            return None
        images, valid = inputs['unsup_weak'], inputs['unsup_valid']
        return self.previous.label(self.network(self.student_names[0]), images, valid, self.step)

    def previous_share(self) -> float:
        """Weight of what earlier students teach: from 0 to 1 in the middle of the run and back."""
        return 1 - abs(2 * self.step / self.max_iters - 1)

    def add_previous(self, losses: Dict[str, Tensor], loss: Tensor) -> Dict[str, Tensor]:
        """Losses of a step together with the unsupervised loss on the labels of earlier students.

        With the weights of 0.5 of FixMatch and UniMatch it makes ``(supervised + unsupervised +
        share * previous) / (2 + share)``.
        """
        share = self.previous_share()
        scale = 2 / (2 + share)
        scaled = {key: value * scale if 'loss' in key else value for key, value in losses.items()}
        return dict(scaled, previous_loss=loss * (self.unsup_scale() * share * scale))

    def after_step(self) -> None:
        """Move the teachers, count, and keep a copy of the student where it is time."""
        super().after_step()
        if self.previous is not None and self.previous.is_due(self.step, self.pass_iters):
            self.previous.take(self.network(self.student_names[0]))

    def after_validation(self, metrics: Dict[str, Any]) -> None:
        """Keep a copy of a student that is the best so far; called by ``MethodHook``."""
        if self.previous is not None and self.previous.is_best(self.step, metrics):
            self.previous.take(self.network(self.student_names[0]))
