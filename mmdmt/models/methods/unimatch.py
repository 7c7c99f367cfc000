"""UniMatch."""

from functools import partial
from typing import Any, Dict

import torch
from torch import Tensor

from mmdmt.checks import check_range
from mmdmt.models.forward import Targets, dense_logits, hard_labels, pseudo_label
from mmdmt.models.modes import in_mode
from mmdmt.models.perturbations import with_channel_dropout
from mmdmt.registry import MODELS

from .weak_to_strong import WeakToStrong


@MODELS.register_module()
class UniMatch(WeakToStrong):
    """Own labels of the weak view for two strong views and for dropped features.

    Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation",
    CVPR 2023. One network labels for itself: a pass over labeled and weak images gives labels,
    supervised loss and, through the same decode head, logits of features of which whole channels
    were dropped; a second pass sees two strong views. Pixels that a strong view takes from another
    image have that image's label, given in eval mode. The loss is
    ``(supervised + (strong_1 + strong_2) / 4 + feature / 2) / 2``.

    The released code drops channels of labeled images too, whose logits it does not use; here they
    are not computed. The partners are images of the batch, in the released code a second batch.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor. Channels are dropped from every
            map that its backbone, or neck, hands to the heads.
        feature_dropout (float): Probability that a channel is dropped. Defaults to 0.5.
        feature_share (float): Share of the loss on dropped features in the unsupervised loss, in
            [0, 1]. At 0 their logits are not computed. Defaults to 0.5.
        sup_weight (float): Defaults to 0.5.
        unsup_weight (float): Defaults to 0.5.
        **common: Settings of :class:`.WeakToStrong`.
    """

    takes_previous = True

    def __init__(
        self,
        segmentor: dict,
        *,
        feature_dropout: float = 0.5,
        feature_share: float = 0.5,
        sup_weight: float = 0.5,
        unsup_weight: float = 0.5,
        **common,
    ) -> None:
        common.update(sup_weight=sup_weight, unsup_weight=unsup_weight)
        super().__init__({'student': segmentor}, **common)
        check_range('feature_dropout', feature_dropout, 0, 0.99)
        check_range('feature_share', feature_share, 0, 1)
        self.feature_dropout = feature_dropout
        self.feature_share = feature_share

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised loss, and cross entropy on two strong views and on dropped features."""
        images, valid = inputs['unsup_weak'], inputs['unsup_valid']
        with in_mode(self.student, training=False):
            pasted = None if self.mix is None else pseudo_label(self.student, images, valid)
        drop = partial(with_channel_dropout, prob=self.feature_dropout)
        losses, logits = self.forward_student(
            'student', inputs, data_samples, images, perturb=drop if self.feature_share else None
        )
        own = hard_labels(logits[: len(images)], valid)
        threshold = self.threshold(own)
        previous = self.previous_targets(inputs)
        parts = [self.mixed_view(inputs, data_samples, own, pasted, previous) for _ in range(2)]
        views, targets, earlier = zip(*parts)
        strong = dense_logits(self.student, torch.cat(views)).chunk(2)
        dropped = logits[len(images) :]
        terms, stats = self._terms(strong, targets, dropped, own, threshold)
        losses.update({name: term * self.unsup_scale() for name, term in terms.items()})
        if previous:
            terms, _ = self._terms(strong, earlier, dropped, previous, self.previous.threshold)
            losses = self.add_previous(losses, sum(terms.values()))
        return dict(losses, **stats)

    def _terms(self, strong: tuple, mixed: tuple, dropped: Tensor, weak: Targets, threshold: Any):
        """Losses with their shares, and statistics, for targets of strong and weak views."""
        loss, stats = self.mean_consistency(strong, mixed, threshold)
        terms = dict(unsup_loss=loss * (1 - self.feature_share))
        if self.feature_share:
            loss, _ = self.consistency(dropped, weak, threshold)
            terms['unsup_feature_loss'] = loss * self.feature_share
        return terms, stats
