"""The two contrastive modules of Cross Teacher Training."""

import copy
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmdmt.models.losses.contrast.anchors import gather_pixels, sample_anchors
from mmdmt.models.losses.contrast.feature_tap import CLASSIFIER
from mmdmt.models.losses.contrast.memory_bank import ClassMemoryBank
from mmdmt.models.losses.contrast.projection import projection_head
from mmdmt.models.losses.functional import memory_contrast_loss, peer_contrast_loss
from mmdmt.models.teachers import EMAUpdater, freeze

#: What ranks of a distributed run put into their banks.
BANK_SYNCS = ('gather', 'rank')


class View(NamedTuple):
    """What one student saw in a step, and what it was to learn there.

    Attributes:
        feat: Features (N_l + N_u, D, h, w) of the labeled and the unlabeled images.
        logits: Logits (N_l + N_u, C, h, w) on the same pixels.
        sup_label: Ground truth (N_l, H, W).
        label: Labels (N_u, H, W) that a teacher gave, mixed as the images.
        confidence: Their confidence (N_u, H, W).
        valid: (N_u, H, W) bool, False on padding.
    """

    feat: Tensor
    logits: Tensor
    sup_label: Tensor
    label: Tensor
    confidence: Tensor
    valid: Tensor


class CrossContrast(nn.Module):
    """High- and low-level contrast between two students, with a memory bank of each teacher.

    Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
    Neurocomputing 508, 2022 (arXiv 2209.01327). The published code computes both losses and adds
    neither, so their weights are not known; those here are this project's choice.

    - **High level**: features of labeled pixels and of unlabeled pixels with a label surer than
      ``threshold`` are pulled to the bank of their class and pushed from all others
      (:func:`~mmdmt.models.losses.functional.memory_contrast_loss`). A student's bank holds
      features of **its own** teacher on labeled pixels.
    - **Low level**: features of the other unlabeled pixels are pulled to the feature of the same
      pixel in the peer, where the peer is surer than the student, and pushed from the features of
      other classes in both banks (:func:`~mmdmt.models.losses.functional.peer_contrast_loss`).

    Cost is bounded: ``anchors_per_class`` pixels per class, drawn at random, take part in each
    loss of a step, whatever the size of the images.

    Args:
        channels (dict[str, int]): Feature channels of the two networks, by side ('l', 'r').
        num_classes (int): Number of classes C.
        high_weight (float): Weight of the high-level loss; 0 switches it off. Defaults to 0.1.
        low_weight (float): Weight of the low-level loss; 0 switches it off. Defaults to 0.1.
        high_temperature (float): Defaults to 0.1, as published.
        low_temperature (float): Defaults to 0.5, as published.
        threshold (float): Confidence that splits the unlabeled pixels between the two losses.
            Defaults to 0.75, as published.
        anchors_per_class (int): Pixels per class in each loss of a step. Defaults to 256.
        bank_size (int): Features kept per class and network. Defaults to 256, as published.
        bank_threshold (float): See :class:`~mmdmt.models.losses.contrast.ClassMemoryBank`.
        bank_threshold_on (str): 'prob' (default) or 'logit', as in the published code.
        num_labeled (int, optional): Number of labeled images of the data set. At most
            ``max(int(bank_size / num_labeled * 2), labeled images in the step)`` pixels per class
            enter a bank in a step, as published; without it only the second number counts.
        per_class (int, optional): That number itself.
        bank_sync (str): 'gather': under DDP every rank puts the chosen pixels of all ranks into
            its bank, so that banks are equal. 'rank': only its own (a checkpoint then holds the
            banks of rank 0). Defaults to 'gather'.
        start (float): Share of the classes, in [0, 1], whose banks must be full in both networks
            before the losses count. Defaults to 1, as published. Below 1 the rows that are not
            filled are left out. A class that is never predicted right never fills its bank.
        requires_surer_peer (bool): Whether a pixel is pulled to the peer only where the peer is
            surer. False is the published code. Defaults to True.
        peer_threshold (float): Confidence the peer needs besides. Published: 0, for DeepLabV3+
            0.75. Defaults to 0.
        projection (dict, optional): Arguments ``channels`` and ``hidden`` of
            :func:`~mmdmt.models.losses.contrast.projection.projection_head`. Defaults to none,
            as published.
        classifier (str): Layer whose input is the feature, see
            :class:`~mmdmt.models.losses.contrast.feature_tap.FeatureTap`.

    Raises:
        ValueError: If a value is out of range, or both networks have features of different
            channels and no ``projection``.
    """

    def __init__(
        self,
        channels: Dict[str, int],
        num_classes: int,
        high_weight: float = 0.1,
        low_weight: float = 0.1,
        high_temperature: float = 0.1,
        low_temperature: float = 0.5,
        threshold: float = 0.75,
        anchors_per_class: int = 256,
        bank_size: int = 256,
        bank_threshold: float = 0.95,
        bank_threshold_on: str = 'prob',
        num_labeled: Optional[int] = None,
        per_class: Optional[int] = None,
        bank_sync: str = 'gather',
        start: float = 1.0,
        requires_surer_peer: bool = True,
        peer_threshold: float = 0.0,
        projection: Optional[dict] = None,
        classifier: str = CLASSIFIER,
    ) -> None:
        super().__init__()
        self.high_weight, self.low_weight = high_weight, low_weight
        self.high_temperature, self.low_temperature = high_temperature, low_temperature
        self.threshold = threshold
        self.anchors_per_class = anchors_per_class
        self.num_labeled, self.per_class = num_labeled, per_class
        self.bank_sync = bank_sync
        self.start = start
        self.requires_surer_peer = requires_surer_peer
        self.peer_threshold = peer_threshold
        self.num_classes = num_classes
        self._check()
        _check_channels(channels, projection)
        self.students = _projections(channels, projection)
        self.teachers = freeze(copy.deepcopy(self.students))
        width = projection['channels'] if projection else next(iter(channels.values()))
        self.banks = nn.ModuleDict(
            {
                side: ClassMemoryBank(
                    num_classes, bank_size, width, bank_threshold, bank_threshold_on
                )
                for side in channels
            }
        )

    def _check(self) -> None:
        for name in ('high_temperature', 'low_temperature', 'anchors_per_class'):
            if getattr(self, name) <= 0:
                raise ValueError(f'`contrast.{name}` must be positive, got {getattr(self, name)}')
        for name in ('high_weight', 'low_weight'):
            if getattr(self, name) < 0:
                raise ValueError(f'`contrast.{name}` must be >= 0, got {getattr(self, name)}')
        for name in ('threshold', 'start', 'peer_threshold'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'`contrast.{name}` must be in [0, 1], got {getattr(self, name)}')
        if self.bank_sync not in BANK_SYNCS:
            raise ValueError(
                f'`contrast.bank_sync` must be one of {BANK_SYNCS}, got {self.bank_sync!r}'
            )

    # -------------------------------------------------------------------------------- losses

    def forward(self, views: Dict[str, View]) -> Dict[str, Tensor]:
        """Contrastive losses of both students.

        Args:
            views (dict[str, View]): What each side saw.

        Returns:
            dict[str, Tensor]: ``contrast_<side>_high_loss`` and ``contrast_<side>_low_loss``,
            weighted; ``contrast_<side>_bank`` (filled share of the bank) and ``contrast_on`` (1
            once the losses count).
        """
        on = self.started()
        out = dict(contrast_on=on)
        for side, peer in pairs(views):
            out[f'contrast_{side}_bank'] = self.banks[side].filled.float().mean()
            if self.high_weight:
                loss = self._high_level(side, views[side])
                out[f'contrast_{side}_high_loss'] = loss * on * self.high_weight
            if self.low_weight:
                loss = self._low_level(side, peer, views)
                out[f'contrast_{side}_low_loss'] = loss * on * self.low_weight
        return out

    @torch.no_grad()
    def started(self) -> Tensor:
        """1 once enough classes have full banks in both networks, else 0; a float scalar.

        Banks never get emptier, so it stays 1. The losses are multiplied with it: a decision on
        the host would wait for the device.
        """
        full = torch.stack([bank.filled.all(dim=1) for bank in self.banks.values()]).all(dim=0)
        return (full.float().mean() >= self.start - 1e-6).float()

    def _high_level(self, side: str, view: View) -> Tensor:
        """Pull sure pixels to the bank of their class."""
        size = view.feat.shape[2:]
        sup_label = _nearest(view.sup_label, size)
        sure = _nearest((view.confidence >= self.threshold) & view.valid, size)
        label = torch.cat([sup_label, _nearest(view.label, size)])
        # Labels that are no class, such as 255, are never drawn.
        mask = torch.cat([torch.ones_like(sup_label, dtype=torch.bool), sure])
        rows, cls, chosen = self._anchors(side, view.feat, label, mask)
        bank = self.banks[side]
        filled = None if self.start == 1 else bank.filled
        return memory_contrast_loss(rows, cls, chosen, bank.feats, self.high_temperature, filled)

    def _low_level(self, side: str, peer: str, views: Dict[str, View]) -> Tensor:
        """Pull unsure pixels to the peer's feature of the same pixel."""
        view, count = views[side], len(views[side].sup_label)
        feat = view.feat[count:]
        size = feat.shape[2:]
        with torch.no_grad():
            peer_feat = _bilinear(views[peer].feat[count:], size)
            own = view.logits[count:].float().softmax(dim=1).amax(dim=1)
            probs = _bilinear(views[peer].logits[count:].float().softmax(dim=1), size)
            confidence, label = probs.max(dim=1)
            mask = _nearest((view.confidence < self.threshold) & view.valid, size)
            mask &= confidence >= self.peer_threshold
            if self.requires_surer_peer:
                mask &= confidence > own
        index, chosen = self._draw(label, mask)
        rows = self._project(self.students, side, gather_pixels(feat, index))
        with torch.no_grad():
            peers = self._project(self.students, peer, gather_pixels(peer_feat, index))
        banks = [self.banks[side], self.banks[peer]]
        filled = None if self.start == 1 else torch.cat([bank.filled for bank in banks], dim=1)
        return peer_contrast_loss(
            _as_maps(rows),
            _as_maps(peers),
            _as_maps(label.flatten()[index]),
            _as_maps(chosen),
            torch.cat([bank.feats for bank in banks], dim=1),
            self.low_temperature,
            filled,
        )

    def _anchors(
        self, side: str, feat: Tensor, label: Tensor, mask: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        index, chosen = self._draw(label, mask)
        rows = self._project(self.students, side, gather_pixels(feat, index))
        return _as_maps(rows), _as_maps(label.flatten()[index]), _as_maps(chosen)

    def _draw(self, label: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor]:
        return sample_anchors(label, mask, self.num_classes, self.anchors_per_class)

    @staticmethod
    def _project(heads: nn.ModuleDict, side: str, rows: Tensor) -> Tensor:
        return heads[side](rows) if side in heads else rows

    # ---------------------------------------------------------------------- banks and teachers

    @torch.no_grad()
    def remember(self, side: str, feat: Tensor, logits: Tensor, sup_label: Tensor) -> None:
        """Put features of a teacher on labeled images into the bank of its side.

        Args:
            side (str): Side of the teacher.
            feat (Tensor): (N_l, D, h, w) features of the teacher.
            logits (Tensor): (N_l, C, h, w) logits on the same pixels.
            sup_label (Tensor): Ground truth (N_l, H, W).
        """
        bank = self.banks[side]
        label = _nearest(sup_label, feat.shape[2:])
        rows, counts = bank.select(feat, logits, label, self._admitted(len(feat)))
        rows = self._project(self.teachers, side, rows.to(feat))
        if self.bank_sync == 'rank':
            bank.append(rows, counts)
            return
        ranks = zip(all_gather(rows.contiguous()), all_gather(counts))
        for other_rows, other_counts in ranks:
            bank.append(other_rows, other_counts)

    def _admitted(self, batch: int) -> int:
        """Pixels per class that may enter a bank in this step."""
        if self.per_class is not None:
            return self.per_class
        capacity = next(iter(self.banks.values())).feats.shape[1]
        share = int(capacity / self.num_labeled * 2) if self.num_labeled else 0
        return max(share, batch)

    def update_teacher(self, side: str, ema: EMAUpdater, step: int) -> None:
        """Move the projection head of a teacher with its network."""
        if side in self.students:
            ema.update(self.teachers[side], self.students[side], step)

    def reset_teachers(self) -> None:
        """Make the teachers' projection heads copies of the students'."""
        self.teachers.load_state_dict(self.students.state_dict())


def pairs(sides: Union[Dict[str, View], List[str]]) -> List[Tuple[str, str]]:
    """(side, peer) of both sides."""
    left, right = sides
    return [(left, right), (right, left)]


def _check_channels(channels: Dict[str, int], projection: Optional[dict]) -> None:
    if projection is None and len(set(channels.values())) > 1:
        raise ValueError(
            f'the networks have features of {channels} channels, which cannot be compared: set '
            '`contrast.projection=dict(channels=128)`, or switch contrast off'
        )


def _projections(channels: Dict[str, int], projection: Optional[dict]) -> nn.ModuleDict:
    if projection is None:
        return nn.ModuleDict()
    return nn.ModuleDict(
        {side: projection_head(number, **projection) for side, number in channels.items()}
    )


def _as_maps(rows: Tensor) -> Tensor:
    """(A, ...) rows as maps of one pixel each, (A, ..., 1, 1)."""
    return rows[..., None, None]


def _nearest(maps: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resize (N, H, W) labels or masks without inventing values."""
    resized = F.interpolate(maps[:, None].float(), size=tuple(size), mode='nearest')
    return resized.squeeze(1).to(maps.dtype)


def _bilinear(maps: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resize (N, D, h, w) maps, if they have another size."""
    if maps.shape[2:] == size:
        return maps
    return resize(maps, size=tuple(size), mode='bilinear', align_corners=False)
