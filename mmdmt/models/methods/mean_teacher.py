"""Mean Teacher for semantic segmentation."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from mmdmt.models.forward import (
    linear_ramp,
    pseudo_label,
    supervised_loss_and_logits,
    weighted_losses,
)
from mmdmt.models.losses.functional import masked_consistency_loss
from mmdmt.models.methods.base import SemiSegmentor
from mmdmt.registry import MODELS

Targets = Tuple[Tensor, Tensor, Tensor]


@MODELS.register_module()
class MeanTeacher(SemiSegmentor):
    """One student, one EMA teacher that labels the weak view for the strong one.

    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, in the form used
    for segmentation since: the teacher's hard labels and confidence on the weak view supervise
    the student on the strong view, where the teacher is sure (FixMatch, NeurIPS 2020). The loss is
    ``sup + unsup_weight * sum(1[c >= threshold] CE) / #valid``. Optionally the strong views of a
    batch are mixed (CutMix or ClassMix) together with labels and confidence.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        semi_train_cfg (dict, optional): Besides the keys of :class:`SemiSegmentor`:

            - ``sup_weight`` (float): Weight of the supervised losses. Defaults to 1.
            - ``unsup_weight`` (float): Weight of the unsupervised loss. Defaults to 1.
            - ``threshold`` (float): Confidence a pixel needs, in [0, 1]. Defaults to 0.95.
            - ``rampup_iters`` (int): Iterations over which ``unsup_weight`` rises linearly from
              0. Defaults to 0.
            - ``mix`` (dict, optional): Config of a mixing view, such as
              ``dict(type='mmdmt.CutMix')``. Defaults to None.
        semi_test_cfg (dict, optional): See :class:`SemiSegmentor`.
        data_preprocessor (dict, optional): Config of a :class:`SemiDataPreprocessor`.
        init_cfg (dict, optional): mmengine's initialization config.

    Raises:
        ValueError: If ``threshold`` is outside [0, 1].
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
        self.threshold = cfg.get('threshold', 0.95)
        self.rampup_iters = cfg.get('rampup_iters', 0)
        self.mix = MODELS.build(cfg['mix']) if cfg.get('mix') else None
        if not 0 <= self.threshold <= 1:
            raise ValueError(f'`semi_train_cfg.threshold` must be in [0, 1], got {self.threshold}')

    def build_networks(self, segmentor: dict) -> None:
        """Build ``student`` and ``teacher``."""
        self.add_student('student', segmentor)
        self.add_teacher('teacher', segmentor, student='student')

    def loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Supervised loss and consistency loss of one batch.

        Args:
            inputs (dict[str, Tensor]): ``sup`` (N_l, 3, H, W), ``unsup_weak`` and
                ``unsup_strong`` (N_u, 3, H, W), ``unsup_valid`` (N_u, H, W).
            data_samples (dict[str, list]): ``sup``: ground truth of the labeled images.

        Returns:
            dict[str, Tensor]: ``sup_*`` of the segmentor, ``unsup_loss``, and the health of the
            method: ``unsup_keep_ratio`` (share of valid pixels above the threshold),
            ``unsup_agreement`` (share on which student and teacher say the same class),
            ``unsup_confidence`` (mean).
        """
        if 'unsup_weak' not in inputs:
            losses = self.student.loss(inputs['sup'], data_samples['sup'])
            return weighted_losses(losses, self.sup_weight, 'sup_')
        strong, targets = self._strong_view_and_targets(inputs)
        losses, logits = supervised_loss_and_logits(
            self.student, inputs['sup'], data_samples['sup'], strong
        )
        losses = weighted_losses(losses, self.sup_weight, 'sup_')
        losses.update(self._consistency(logits, *targets))
        return losses

    def _strong_view_and_targets(self, inputs: Dict[str, Tensor]) -> Tuple[Tensor, Targets]:
        """The student's unlabeled input, and (label, confidence, valid) on its pixels."""
        label, confidence = pseudo_label(self.teacher, inputs['unsup_weak'])
        strong, valid = inputs['unsup_strong'], inputs['unsup_valid']
        if self.mix is not None:
            views = (strong, label, confidence, valid)
            strong, *targets = self.mix(*views, label=label, valid=valid).tensors
            return strong, tuple(targets)
        return strong, (label, confidence, valid)

    def _consistency(
        self, logits: Tensor, label: Tensor, confidence: Tensor, valid: Tensor
    ) -> Dict[str, Tensor]:
        loss, _ = masked_consistency_loss(logits, label, confidence, self.threshold, valid)
        with torch.no_grad():
            count = valid.sum().clamp(min=1)
            kept = (confidence >= self.threshold) & valid
            agree = (logits.argmax(dim=1) == label) & valid
            stats = dict(
                unsup_keep_ratio=kept.sum() / count,
                unsup_agreement=agree.sum() / count,
                unsup_confidence=(confidence * valid).sum() / count,
            )
        return dict(unsup_loss=loss * self.unsup_weight * self._ramp(), **stats)

    def _ramp(self) -> float:
        """Factor of the unsupervised weight at this step, in [0, 1]."""
        return linear_ramp(self._ema_steps[0], self.rampup_iters)
