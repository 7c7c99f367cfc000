"""Label-adaptive CutMix."""

import math
from collections.abc import Sequence
from typing import Tuple

import torch
from torch import Tensor, nn

from mmdmt.checks import check_range
from mmdmt.models.forward import Targets
from mmdmt.models.losses.entropy import pixel_entropy
from mmdmt.registry import MODELS

from .masks import beta_boxes, box_mask
from .mix import Mixing
from .partners import mix_partners


@MODELS.register_module()
class AdaptiveCutMix(nn.Module):
    """CutMix in which labeled images help where the labels of an image are not reliable (AugSeg).

    Zhao et al., "Augmentation Matters: A Simple-yet-Effective Approach to Semi-Supervised Semantic
    Segmentation", CVPR 2023. The images are shuffled; image i has the partner p(i). Into a copy of
    each image i a box of the labeled image p(i) is pasted, with its ground truth and a confidence
    of 1, with probability ``1 - reliability[i]``. Then every image i gets a box of the copy p(i),
    with labels and confidence. Ground truth to be ignored stays not valid.

    Args:
        labeled (Sequence[float]): Parameters of the Beta distribution that sizes the boxes of
            labeled images, see :func:`.beta_boxes`. Defaults to (8, 2).
        unlabeled (Sequence[float]): Those of the boxes of copies. Defaults to (4, 4).
        prob (float): Probability, per image, of a box of a copy. Defaults to 1.
        ignore_index (int): Ground truth to be ignored. Defaults to 255.
    """

    def __init__(
        self,
        labeled: Sequence[float] = (8.0, 2.0),
        unlabeled: Sequence[float] = (4.0, 4.0),
        prob: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_range('AdaptiveCutMix.prob', prob, 0, 1)
        for name, pair in dict(labeled=labeled, unlabeled=unlabeled).items():
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or min(pair) <= 0:
                raise ValueError(f'`AdaptiveCutMix.{name}` must be two numbers > 0, got {pair!r}')
        self.labeled, self.unlabeled = tuple(labeled), tuple(unlabeled)
        self.prob = prob
        self.ignore_index = ignore_index

    def forward(
        self,
        images: Tensor,
        targets: Targets,
        reliability: Tensor,
        labeled_images: Tensor,
        ground_truth: Tensor,
    ) -> Tuple[Tensor, Targets]:
        """Mix images (N, 3, H, W) and their targets.

        Args:
            images: Unlabeled images, augmented and normalized.
            targets: What is to be learned on them.
            reliability: (N,) in [0, 1].
            labeled_images: (N_l, 3, H, W), normalized; repeated if there are fewer than N.
            ground_truth: Of those, (N_l, H, W) long.

        Raises:
            ValueError: If labeled and unlabeled images differ in size.
        """
        if labeled_images.shape[1:] != images.shape[1:]:
            raise ValueError(
                'AdaptiveCutMix pastes labeled images into unlabeled ones, so both need crops of '
                f'the same size, got {tuple(labeled_images.shape)} and {tuple(images.shape)}'
            )
        count, partner = len(images), mix_partners(len(images), 'shuffle')
        valid = ground_truth != self.ignore_index
        truth = Targets(ground_truth, valid.to(targets.confidence.dtype), valid)
        paste = self._boxes(self.labeled, targets, partner % len(labeled_images))
        # The reliability is on the device, so it is compared there.
        uniform = torch.rand(count, device='cpu').to(images.device, non_blocking=True)
        kept = paste.mask | (uniform < reliability).view(-1, 1, 1)
        paste = paste._replace(mask=kept)
        copies, learned = paste.between(images, labeled_images), paste.targets(targets, truth)
        swap = self._boxes(self.unlabeled, targets, partner)
        applied = (torch.rand(count, device='cpu') < self.prob).to(images.device, non_blocking=True)
        swap = swap._replace(mask=swap.mask | ~applied.view(-1, 1, 1))
        return swap.between(images, copies), swap.targets(targets, learned)

    def _boxes(self, sides: Sequence[float], targets: Targets, partner: Tensor) -> Mixing:
        """One box for each image, from these partners."""
        count, *size = targets.label.shape
        boxes = beta_boxes(count, tuple(size), *sides)
        device = targets.label.device
        mask = box_mask(boxes.to(device, non_blocking=True), tuple(size))
        return Mixing(mask, partner.to(device, non_blocking=True))

    def extra_repr(self) -> str:
        """Settings as shown by ``print(module)``."""
        return f'labeled={self.labeled}, unlabeled={self.unlabeled}, prob={self.prob}'


@torch.no_grad()
def reliability(logits: Tensor, valid: Tensor) -> Tensor:
    """Of each image (N,): mean over valid pixels of ``confidence * (1 - entropy / log(C))``.

    Logits are (N, C, H, W), ``valid`` (N, H, W) bool; an image without valid pixels has 0.
    """
    confidence = logits.float().softmax(dim=1).amax(dim=1)
    score = confidence * (1 - pixel_entropy(logits) / math.log(logits.shape[1])) * valid
    return score.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
