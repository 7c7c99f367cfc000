"""The contrastive module of U2PL."""

import copy
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn

from mmdmt.checks import check_count, check_range

from .anchors import gather_pixels, resize_nearest, sample_anchors
from .feature_tap import CLASSIFIER, FeatureTap, feature_channels, find_classifier
from .functional import class_means, negatives_contrast_loss
from .memory_bank import ClassQueue
from .projection import projection_head

#: Keys of a class that are drawn from its queue in a step; every anchor has some of them.
POOL = 256


class Pixels(NamedTuple):
    """What is known about the pixels of a step.

    Attributes:
        sup_label: Ground truth (N_l, H, W).
        label: Pseudo-labels (N_u, H, W).
        certain, uncertain: (N_u, H, W) bool, True on pixels of low and of high entropy, False on
            padding.
    """

    sup_label: Tensor
    label: Tensor
    certain: Tensor
    uncertain: Tensor


class UnreliableContrast(nn.Module):
    """Contrast that learns from unreliable pixels what they are not.

    Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022
    (arXiv 2203.03884). For each class c, :func:`.negatives_contrast_loss` of

    - **anchors**: student representations of pixels that are labeled c, or have c as pseudo-label
      of low entropy, and to which the teacher gives c more than ``anchor_prob``;
    - **positive**: the mean teacher representation of the pixels with these labels, whatever the
      teacher gives them;
    - **negatives**: drawn from a queue of teacher representations of pixels that are not c:
      unlabeled ones of high entropy for which c is among the ranks ``low_rank`` to ``high_rank`` of
      the teacher's classes, and labeled ones of other classes for which c is among the first
      ``low_rank`` ranks.

    Everything is held by class id. A class without anchors or with an empty queue adds nothing.
    Ranks of a distributed run put the keys of all into their queues, which therefore are equal;
    positives are those of a rank's own images.

    Args:
        student (BaseSegmentor): Of which the classes and channels are read.
        weight (float): Weight of the loss. Defaults to 0.1, as in the paper; released code: 1.
        temperature (float): Defaults to 0.5.
        anchors_per_class (int): Anchors of a class, drawn at random, at most. Defaults to 256.
        negatives (int): Negatives of an anchor, of 256 that the anchors of its class share in a
            step. Defaults to 50.
        anchor_prob (float): In [0, 1]. Defaults to 0.3.
        low_rank, high_rank (int): First rank (from 0) of the window of unlabeled negatives and the
            one behind it. Defaults to 3 and 20. With fewer classes than that the window shrinks to
            ``max(1, min(low_rank, C - 2))`` and ``min(high_rank, C)``: of two classes, a pixel is a
            negative of the less probable one.
        labeled_negatives (bool): Whether labeled pixels are negatives. False is the released code,
            whose mask of them is empty. Defaults to True.
        queue_size (int): Keys of a class that are kept. Defaults to 4096.
        keys_per_class (int): New keys of a class in a step and rank, drawn at random, at most.
            Defaults to 256. Published are 30,000 (50,000 of class 0) and all: also a few steps.
        projection (dict, optional): ``channels`` and ``hidden`` of :func:`.projection_head`, which
            makes the representation. Defaults to 256 of both.
        classifier (str): Layer whose input is the feature, see :class:`.FeatureTap`.
    """

    def __init__(
        self,
        student: BaseSegmentor,
        weight: float = 0.1,
        temperature: float = 0.5,
        anchors_per_class: int = 256,
        negatives: int = 50,
        anchor_prob: float = 0.3,
        low_rank: int = 3,
        high_rank: int = 20,
        labeled_negatives: bool = True,
        queue_size: int = 4096,
        keys_per_class: int = 256,
        projection: Optional[dict] = None,
        classifier: str = CLASSIFIER,
    ) -> None:
        super().__init__()
        check_range('contrast.weight', weight, 0)
        check_range('contrast.temperature', temperature, 1e-6)
        check_range('contrast.anchor_prob', anchor_prob, 0, 1)
        counts = dict(
            anchors_per_class=anchors_per_class,
            negatives=negatives,
            low_rank=low_rank,
            queue_size=queue_size,
            keys_per_class=keys_per_class,
        )
        for name, value in counts.items():
            check_count(f'contrast.{name}', value, 1)
        check_count('contrast.high_rank', high_rank, low_rank + 1)
        self.num_classes = max(2, student.out_channels)
        self.weight, self.temperature, self.anchor_prob = weight, temperature, anchor_prob
        self.anchors_per_class, self.negatives = anchors_per_class, negatives
        self.ranks = max(1, min(low_rank, self.num_classes - 2)), min(high_rank, self.num_classes)
        self.labeled_negatives = labeled_negatives
        self.keys_per_class = min(keys_per_class, queue_size)
        self.classifier = classifier
        projection = dict(dict(channels=256, hidden=256), **(projection or {}))
        channels = feature_channels(find_classifier(student, classifier))
        self.student = projection_head(channels, **projection)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.queue = ClassQueue(self.num_classes, queue_size, projection['channels'])

    def tap(self, network: BaseSegmentor) -> FeatureTap:
        """Records the features of a network inside a ``with`` block."""
        return FeatureTap(network, self.classifier)

    def idle(self) -> Dict[str, Tensor]:
        """A loss of 0 for a step without contrast: DDP waits for a gradient of each parameter."""
        return dict(contrast_loss=0 * sum(each.sum() for each in self.student.parameters()))

    def forward(self, student: FeatureTap, teacher: FeatureTap, pixels: Pixels) -> dict:
        """Loss of a step, after the queues have taken in its keys.

        Args:
            student: What it has made of the labeled images and, after them, of the unlabeled ones.
            teacher: The same of the teacher.
            pixels: Of the same images, at any resolution.

        Returns:
            dict[str, Tensor]: ``contrast_loss``, weighted; ``contrast_classes``, the number of
            classes that have anchors and negatives; ``contrast_filled``, the filled share of the
            queues.
        """
        pixels = Pixels(*(resize_nearest(each, student.features.shape[2:]) for each in pixels))
        label = torch.cat([pixels.sup_label, pixels.label.masked_fill(~pixels.certain, -1)])
        positive = self._remember(teacher, pixels, label)
        index, chosen = self._anchors(teacher.logits, label)
        shape = self.num_classes, self.anchors_per_class
        chosen = chosen.view(shape) & (self.queue.filled > 0)[:, None]
        negatives = self.queue.draw(max(POOL, self.negatives))
        loss = negatives_contrast_loss(
            self.student(gather_pixels(student.features, index)).unflatten(0, shape),
            positive,
            chosen,
            negatives,
            random_windows(shape, negatives.shape[1], self.negatives, label.device),
            self.temperature,
        )
        return dict(
            contrast_loss=loss * self.weight,
            contrast_classes=chosen.any(dim=1).float().sum(),
            contrast_filled=self.queue.filled.float().mean() / self.queue.feats.shape[1],
        )

    @torch.no_grad()
    def _remember(self, teacher: FeatureTap, pixels: Pixels, label: Tensor) -> Tensor:
        """Put new keys into the queues; the mean representations (C, D) of the labels."""
        # The last layer is linear: that of a mean is the mean of it, and of keys few are needed.
        hidden, last = self.teacher[:-1], self.teacher[-1]
        rows = hidden(teacher.features.movedim(1, -1).flatten(0, 2))
        keys = negative_pixels(teacher.logits, pixels, self.ranks, self.labeled_negatives)
        self.queue.remember(rows, keys.movedim(1, 0).flatten(1), self.keys_per_class, last)
        return last(class_means(rows, label.flatten(), self.num_classes))

    @torch.no_grad()
    def _anchors(self, logits: Tensor, label: Tensor) -> Tuple[Tensor, Tensor]:
        """Flat indices of pixels, and which of them are real, as of :func:`.sample_anchors`."""
        own = label.clamp(0, self.num_classes - 1)
        prob = logits.float().softmax(dim=1).gather(1, own[:, None]).squeeze(1)
        known = prob > self.anchor_prob
        return sample_anchors(label, known, self.num_classes, self.anchors_per_class)


def random_windows(shape: Tuple[int, int], total: int, number: int, device: torch.device) -> Tensor:
    """For each cell of a shape, ``number`` of ``total`` places in a row, the last before the first.

    What stands in these places is drawn at random, and so is what a window covers.

    Returns:
        (*shape, total) bool.
    """
    first = torch.randint(total, (*shape, 1), device=device)
    place = torch.arange(total, device=device) - first
    return ((place >= 0) & (place < number)) | (place < number - total)


@torch.no_grad()
def negative_pixels(
    logits: Tensor, pixels: Pixels, ranks: Tuple[int, int], labeled: bool = True
) -> Tensor:
    """Which pixels are negatives of which classes: (N_l + N_u, C, h, w) bool.

    Args:
        logits: Of the teacher, (N_l + N_u, C, h, w), labeled images first.
        pixels: At the resolution of the logits.
        ranks: First rank (from 0) of the window of unlabeled pixels and the one behind it; labeled
            ones are negatives of the classes before the window that are not theirs.
        labeled: Whether labeled pixels are negatives at all.
    """
    count, (low, high) = len(pixels.sup_label), ranks
    logits = logits.float()
    # Values at the edges of the window, instead of the rank of every class.
    top = logits.topk(high, dim=1).values
    likely = logits >= top[:, low - 1 : low]
    possible = ~likely & (logits >= top[:, high - 1 : high])
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    truth = pixels.sup_label[:, None]
    known = (truth >= 0) & (truth < logits.shape[1]) & labeled
    of_labeled = likely[:count] & (truth != classes) & known
    return torch.cat([of_labeled, possible[count:] & pixels.uncertain[:, None]])
