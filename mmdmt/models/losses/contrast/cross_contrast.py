"""The two contrastive modules of Cross Teacher Training."""

import copy
from dataclasses import dataclass
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from mmseg.models.segmentors import BaseSegmentor
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmdmt.checks import build_part, check_range
from mmdmt.models.forward import dense_logits
from mmdmt.models.modes import without_gradient
from mmdmt.models.pair import PEERS

from .anchors import gather_pixels, resize_nearest, sample_anchors
from .feature_tap import CLASSIFIER, FeatureTap, feature_channels, find_classifier
from .functional import memory_contrast_loss, peer_contrast_loss
from .memory_bank import TeacherBank
from .projection import projection_head


class View(NamedTuple):
    """What one student saw in a step, and what it was to learn there.

    Attributes:
        feat: Features (N_l + N_u, D, h, w) of the labeled and the unlabeled images.
        logits: Logits (N_l + N_u, C, h, w) on the same pixels.
        sup_label: Ground truth (N_l, H, W).
        label, confidence, valid: The :class:`~mmdmt.models.forward.Targets` (N_u, H, W) of the
            unlabeled images, mixed as these.
    """

    feat: Tensor
    logits: Tensor
    sup_label: Tensor
    label: Tensor
    confidence: Tensor
    valid: Tensor


@dataclass
class HighLevel:
    """Weight of the high level, of which 0 switches it off, and its published temperature."""

    weight: float = 0.1
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_range('contrast.high.weight', self.weight, 0)
        check_range('contrast.high.temperature', self.temperature, 1e-6)


@dataclass
class LowLevel:
    """Weight of the low level, of which 0 switches it off, and its published temperature.

    Attributes:
        requires_confident_peer: Whether a pixel is pulled to the peer only where the peer is more
            confident than the student. False is the released code.
        peer_threshold: Confidence the peer needs besides. Published: 0, for DeepLabV3+ 0.75.
    """

    weight: float = 0.1
    temperature: float = 0.5
    requires_confident_peer: bool = True
    peer_threshold: float = 0.0

    def __post_init__(self) -> None:
        check_range('contrast.low.weight', self.weight, 0)
        check_range('contrast.low.temperature', self.temperature, 1e-6)
        check_range('contrast.low.peer_threshold', self.peer_threshold, 0, 1)


class CrossContrast(nn.Module):
    """High- and low-level contrast between two students, with a memory bank of each teacher.

    Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
    Neurocomputing 508, 2022 (arXiv 2209.01327). The released code computes both losses and adds
    neither, so their weights are not known; those here are this project's choice.

    - **High level** (:func:`.memory_contrast_loss`): features of labeled pixels and of unlabeled
      pixels with a confident label are pulled to the bank of their class and pushed from all
      others. A student's bank holds features of **its own** teacher on labeled pixels.
    - **Low level** (:func:`.peer_contrast_loss`): features of the other unlabeled pixels are pulled
      to the feature of the same pixel in the peer, where the peer is more confident than the
      student, and pushed from the features of other classes in both banks.

    Args:
        students (dict[str, BaseSegmentor]): The two networks, by side ('l', 'r'), of which only
            the number of classes and of feature channels is read.
        threshold (float): Confidence that splits the unlabeled pixels between the two levels.
            Defaults to 0.75, as published.
        anchors_per_class (int): Pixels per class, drawn at random, that take part in each loss of
            a step, which bounds its cost whatever the size of the images. Defaults to 256.
        start (float): Share of the classes, in [0, 1], whose banks must be full in both networks
            before the losses count. Defaults to 1, as published. Below 1 the rows that are not
            filled are left out. A class that is never predicted right never fills its bank.
        bank (dict, optional): Settings of :class:`.TeacherBank` but the first two.
        high (dict, optional): Settings of :class:`HighLevel`.
        low (dict, optional): Settings of :class:`LowLevel`.
        projection (dict, optional): ``channels`` and ``hidden`` of :func:`.projection_head`.
            Defaults to none, as published.
        classifier (str): Layer whose input is the feature, see :class:`.FeatureTap`.

    Raises:
        ValueError: If a network has no such classifier, or both have features of different channels
            and no ``projection``.
    """

    def __init__(
        self,
        students: Dict[str, BaseSegmentor],
        *,
        threshold: float = 0.75,
        anchors_per_class: int = 256,
        start: float = 1.0,
        bank: Optional[dict] = None,
        high: Optional[dict] = None,
        low: Optional[dict] = None,
        projection: Optional[dict] = None,
        classifier: str = CLASSIFIER,
    ) -> None:
        super().__init__()
        check_range('contrast.threshold', threshold, 0, 1)
        check_range('contrast.anchors_per_class', anchors_per_class, 1)
        check_range('contrast.start', start, 0, 1)
        self.num_classes = max(2, students['l'].out_channels)
        self.threshold = threshold
        self.anchors_per_class = anchors_per_class
        self.start = start
        self.classifier = classifier
        self.high = build_part('contrast.high', HighLevel, high)
        self.low = build_part('contrast.low', LowLevel, low)
        channels = {
            side: feature_channels(find_classifier(student, classifier))
            for side, student in students.items()
        }
        self.students = _projections(channels, projection)
        self.teachers = copy.deepcopy(self.students).requires_grad_(False)
        sizes = self.num_classes, projection['channels'] if projection else channels['l']
        self.banks = nn.ModuleDict(
            {side: build_part('contrast.bank', TeacherBank, bank, *sizes) for side in PEERS}
        )

    def tap(self, network: BaseSegmentor) -> FeatureTap:
        """Records the features of a network inside a ``with`` block."""
        return FeatureTap(network, self.classifier)

    def forward(self, views: Dict[str, View]) -> Dict[str, Tensor]:
        """Contrastive losses of both students, given what each side saw.

        Returns:
            dict[str, Tensor]: ``contrast_<side>_high_loss`` and ``contrast_<side>_low_loss``,
            weighted; ``contrast_<side>_bank`` (filled share of the bank) and ``contrast_on`` (1
            once the losses count).
        """
        on = self.started()
        out = dict(contrast_on=on)
        for side in PEERS:
            out[f'contrast_{side}_bank'] = self.banks[side].filled.float().mean()
            if self.high.weight:
                loss = self._high_level(side, views)
                out[f'contrast_{side}_high_loss'] = loss * on * self.high.weight
            if self.low.weight:
                loss = self._low_level(side, views)
                out[f'contrast_{side}_low_loss'] = loss * on * self.low.weight
        return out

    @torch.no_grad()
    def started(self) -> Tensor:
        """1 once enough classes have full banks in both networks, else 0; a float scalar.

        Banks never get emptier, so it stays 1. The losses are multiplied with it: a decision on
        the host would wait for the device.
        """
        full = torch.stack([bank.filled.all(dim=1) for bank in self.banks.values()]).all(dim=0)
        return (full.float().mean() >= self.start - 1e-6).float()

    def _high_level(self, side: str, views: Dict[str, View]) -> Tensor:
        """Pull labeled and confident pixels to the bank of their class."""
        view, size = views[side], views[side].feat.shape[2:]
        sup_label = resize_nearest(view.sup_label, size)
        confident = resize_nearest((view.confidence >= self.threshold) & view.valid, size)
        label = torch.cat([sup_label, resize_nearest(view.label, size)])
        # Labels that are no class, such as 255, are never drawn.
        mask = torch.cat([torch.ones_like(sup_label, dtype=torch.bool), confident])
        index, chosen = sample_anchors(label, mask, self.num_classes, self.anchors_per_class)
        rows = self.students[side](gather_pixels(view.feat, index))
        feats, filled = self._bank(side)
        classes = label.flatten()[index]
        return memory_contrast_loss(rows, classes, chosen, feats, self.high.temperature, filled)

    def _low_level(self, side: str, views: Dict[str, View]) -> Tensor:
        """Pull the other pixels to the peer's feature of the same pixel."""
        view, peer = views[side], PEERS[side]
        count, size = len(view.sup_label), view.feat.shape[2:]
        with without_gradient():
            own = view.logits[count:].float().softmax(dim=1).amax(dim=1)
            probs = _bilinear(views[peer].logits[count:].float().softmax(dim=1), size)
            confidence, label = probs.max(dim=1)
            mask = resize_nearest((view.confidence < self.threshold) & view.valid, size)
            mask &= confidence >= self.low.peer_threshold
            if self.low.requires_confident_peer:
                mask &= confidence > own
            index, chosen = sample_anchors(label, mask, self.num_classes, self.anchors_per_class)
            peer_feat = _bilinear(views[peer].feat[count:], size)
            peer_rows = self.students[peer](gather_pixels(peer_feat, index))
        rows = self.students[side](gather_pixels(view.feat[count:], index))
        feats, filled = self._bank(side, peer)
        compared = rows, peer_rows, label.flatten()[index], chosen, feats
        return peer_contrast_loss(*compared, self.low.temperature, filled)

    def _bank(self, *sides: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Features of the banks of some sides, (C, K, D), and which of their rows are filled."""
        feats = torch.cat([self.banks[side].feats for side in sides], dim=1)
        if self.start == 1:  # all are, once the losses count
            return feats, None
        return feats, torch.cat([self.banks[side].filled for side in sides], dim=1)

    @torch.no_grad()
    def remember(
        self, side: str, teacher: BaseSegmentor, images: Tensor, sup_label: Tensor
    ) -> None:
        """Put a teacher's features of normalized labeled images into the bank of its side."""
        with self.tap(teacher) as tap:
            dense_logits(teacher, images)
        label = resize_nearest(sup_label, tap.features.shape[2:])
        self.banks[side].remember(tap.features, tap.logits, label, self.teachers[side])


def _projections(channels: Dict[str, int], projection: Optional[dict]) -> nn.ModuleDict:
    """What maps the features of each side to those that are compared."""
    if projection:
        heads = {side: projection_head(number, **projection) for side, number in channels.items()}
        return nn.ModuleDict(heads)
    if len(set(channels.values())) > 1:
        raise ValueError(
            f'the networks have features of {channels} channels, which cannot be compared: set '
            '`contrast.projection=dict(channels=128)`, or switch contrast off'
        )
    return nn.ModuleDict({side: nn.Identity() for side in channels})


def _bilinear(maps: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resize (N, D, h, w) maps, if they have another size."""
    if maps.shape[2:] == size:
        return maps
    return resize(maps, size=tuple(size), mode='bilinear', align_corners=False)
