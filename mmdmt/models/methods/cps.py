"""Cross Pseudo Supervision."""

from typing import Dict, Tuple, Union

import torch
from torch import Tensor

from mmdmt.models.forward import Targets, hard_labels, not_padded, pseudo_label
from mmdmt.models.pair import PEERS, students_of
from mmdmt.registry import MODELS

from .weak_to_strong import WeakToStrong

Learned = Tuple[Dict[str, Tensor], Dict[str, Tensor], Dict[str, Targets]]


@MODELS.register_module()
class CPS(WeakToStrong):
    """Two students of one architecture, each of which learns the hard labels of the other.

    Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021.
    Without ``mix``, each student sees each image once, and what it predicts for labeled and
    unlabeled images is the other's target. With ``mix`` (the paper's version with CutMix), both
    label the unlabeled images in train mode without gradient, images and labels are mixed, and
    each learns the other's labels on the mixed images.

    ``unsup_weight`` is the paper's lambda: 1.5 on PASCAL VOC and 6 on Cityscapes without CutMix, 1
    and 5 with it. Labeling leaves batch-norm statistics alone, which in the released code count
    each unlabeled image once more. Padding is never learned, of labeled images neither.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor for both students, which then
            differ in their random initialization, or ``dict(l=..., r=...)`` with one for each.
        threshold (float | dict): Defaults to 0: all pixels are learned.
        **common: Settings of :class:`.WeakToStrong`.
    """

    default_predict_on = 'student_l'

    def __init__(
        self,
        segmentor: dict,
        *,
        threshold: Union[float, dict] = 0.0,
        **common,
    ) -> None:
        super().__init__(students_of(segmentor), threshold=threshold, **common)

    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Supervised losses of both, and cross entropy of each with the labels of the other."""
        learn = self._same_images if self.mix is None else self._mixed_images
        losses, logits, targets = learn(inputs, data_samples)
        for side, peer in PEERS.items():
            threshold = self.threshold(targets[peer])
            loss, stats = self.consistency(logits[side], targets[peer], threshold, f'unsup_{side}')
            losses.update(stats, **{f'unsup_{side}_loss': loss * self.unsup_scale()})
        return losses

    def _same_images(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Learned:
        """Supervised losses, and logits and labels of all images in one pass of each student."""
        valid = torch.cat([not_padded(data_samples['sup'], inputs['sup']), inputs['unsup_valid']])
        view = self.strong_view(self.strong, inputs, data_samples)
        losses, logits = {}, {}
        for side in PEERS:
            found, logits[side] = self.forward_student(
                f'student_{side}', inputs, data_samples, view, with_sup=True
            )
            losses.update(found)
        return losses, logits, {side: hard_labels(logits[side], valid) for side in PEERS}

    def _mixed_images(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Learned:
        """Supervised losses, and logits of mixed images with the mixed labels of each student."""
        images, valid = inputs['unsup_weak'], inputs['unsup_valid']
        targets = {
            side: pseudo_label(self.network(f'student_{side}'), images, valid) for side in PEERS
        }
        mixing = self.mix.draw(targets['l'])
        view = mixing(self.strong_view(self.strong, inputs, data_samples))[0]
        losses, logits = {}, {}
        for side in PEERS:
            found, logits[side] = self.forward_student(
                f'student_{side}', inputs, data_samples, view
            )
            losses.update(found)
        return losses, logits, {side: Targets(*mixing(*targets[side])) for side in PEERS}
