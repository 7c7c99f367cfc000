"""Memory of pixel features per class: a bank of the best ones, and queues."""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range

from .anchors import gather_pixels

#: What :class:`ClassMemoryBank` compares with its threshold.
ADMIT_ON = ('prob', 'logit')
#: What ranks of a distributed run put into their banks.
SYNCS = ('gather', 'rank')


class ClassMemoryBank(nn.Module):
    """First-in-first-out memory of the most confident, correctly classified features of a class.

    State lies in buffers: it follows the module to a device and into checkpoints. ``update`` waits
    for nothing on the device. Source: CTT, see :class:`.CrossContrast`.

    Args:
        num_classes (int): Number of classes C.
        capacity (int): Features kept per class, K. CTT: 256.
        channels (int): Length of a feature, D.
        threshold (float): Confidence a pixel needs to be admitted. Defaults to 0.95, as published.
        admit_on (str): What ``threshold`` is compared with: ``'prob'``, the largest softmax value
            (the paper), or ``'logit'``, the largest raw logit (the released code, where nearly
            every correct pixel passes).

    Attributes:
        feats (Tensor): (C, K, D), oldest first; rows from ``counts`` on are not filled.
        counts (Tensor): (C,) long, number of filled rows.
    """

    feats: Tensor
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        channels: int,
        threshold: float = 0.95,
        admit_on: str = 'prob',
    ) -> None:
        super().__init__()
        sizes = dict(num_classes=num_classes, capacity=capacity, channels=channels)
        for name, value in sizes.items():
            check_range(name, value, 1)
        check_choice('admit_on', admit_on, ADMIT_ON)
        self.threshold = threshold
        self.admit_on = admit_on
        self.register_buffer('feats', torch.zeros(num_classes, capacity, channels))
        self.register_buffer('counts', torch.zeros(num_classes, dtype=torch.long))

    @property
    def is_full(self) -> Tensor:
        """Whether every row of every class is filled: a bool scalar on the bank's device.

        ``if bank.is_full`` waits for the device; multiply a loss with it instead.
        """
        return self.filled.all()

    @property
    def filled(self) -> Tensor:
        """Which rows hold a feature: (C, K) bool."""
        rows = torch.arange(self.feats.shape[1], device=self.counts.device)
        return rows < self.counts[:, None]

    def update(self, feat: Tensor, logits: Tensor, label: Tensor, per_class: int) -> None:
        """Admit the most confident pixels that are classified correctly.

        Args:
            feat (Tensor): (N, D, H, W) features.
            logits (Tensor): (N, C, H, W) logits of the same pixels.
            label (Tensor): (N, H, W) ground truth, resized to the feature map. Values outside
                0..C-1 are ignored.
            per_class (int): Pixels admitted per class at most. CTT:
                ``max(int(capacity / num_labeled_images * 2), batch_size)``.

        Raises:
            ValueError: If shapes do not fit or ``per_class`` is not positive.
        """
        self.append(*self.select(feat, logits, label, per_class))

    @torch.no_grad()
    def select(
        self, feat: Tensor, logits: Tensor, label: Tensor, per_class: int
    ) -> Tuple[Tensor, Tensor]:
        """Choose what :meth:`update` would append, for a projection or an exchange in between.

        Arguments and errors are those of :meth:`update`, but features may have any length D'.
        Returned are features (C, k, D') with ``k = min(per_class, capacity)``, and how many of
        them (C,) each class has; rows beyond are meaningless.
        """
        self._check(feat, logits, label, per_class)
        scores = self._scores(logits, label.flatten())
        pixels, counts = _most_confident(scores, min(per_class, self.feats.shape[1]))
        return gather_pixels(feat, pixels.flatten()).unflatten(0, pixels.shape), counts

    @torch.no_grad()
    def append(self, rows: Tensor, counts: Tensor) -> None:
        """Append what :meth:`select` returns, dropping the oldest features on overflow.

        Raises:
            ValueError: If the features are not as long as those of the bank.
        """
        capacity, channels = self.feats.shape[1:]
        if rows.shape[2] != channels:
            raise ValueError(
                f'features must have the {channels} channels of the bank, got {rows.shape[2]}'
            )
        held, total = self.counts[:, None], (self.counts + counts)[:, None]
        position = torch.arange(capacity, device=rows.device).expand(len(rows), -1)
        # Place in the queue of old and new rows of what ends up at each position.
        queue = position + (total - capacity).clamp(min=0)
        source = torch.where(queue < held, queue, queue - held + capacity)
        # Positions beyond the queue keep what they hold.
        source = torch.where(queue < total, source, position)
        both = torch.cat([self.feats, rows.to(self.feats)], dim=1)
        self.feats.copy_(both.gather(1, source[:, :, None].expand(-1, -1, channels)))
        self.counts.copy_(total.squeeze(1).clamp(max=capacity))

    def _scores(self, logits: Tensor, label: Tensor) -> Tensor:
        """Confidence (C, P) of each pixel for the class it is admitted to, -inf for the others."""
        logits = logits.movedim(1, -1).reshape(-1, logits.shape[1]).float()
        values = logits.softmax(dim=1) if self.admit_on == 'prob' else logits
        confidence, predicted = values.max(dim=1)
        admitted = (predicted == label) & (confidence >= self.threshold)
        classes = torch.arange(len(self.counts), device=label.device)
        own = (classes[:, None] == label) & admitted
        return confidence.expand_as(own).masked_fill(~own, -math.inf)

    def _check(self, feat: Tensor, logits: Tensor, label: Tensor, per_class: int) -> None:
        pixels = (feat.shape[0], *feat.shape[2:])
        if tuple(label.shape) != pixels:
            raise ValueError(
                f'`feat` must be (N, D, H, W) and `label` (N, H, W), got '
                f'{tuple(feat.shape)} and {tuple(label.shape)}'
            )
        if tuple(logits.shape) != (pixels[0], len(self.feats), *pixels[1:]):
            raise ValueError(
                f'`logits` must be (N, {len(self.feats)}, H, W) on the pixels of `feat`, '
                f'{tuple(feat.shape)}, got {tuple(logits.shape)}'
            )
        check_range('per_class', per_class, 1)


class TeacherBank(ClassMemoryBank):
    """A memory bank of projected features of a teacher, shared by the ranks of a run.

    Args:
        num_classes, channels, threshold: As of :class:`ClassMemoryBank`.
        size (int): Its ``capacity``. Defaults to 256, as published.
        threshold_on (str): Its ``admit_on``.
        per_class (int, optional): Pixels per class that are admitted in a step at most; published
            is ``max(int(size / labeled images of the dataset * 2), labeled images of the step)``.
            Defaults to the labeled images of the step.
        sync (str): Under DDP, 'gather': every rank admits the chosen pixels of all ranks, so that
            banks are equal. 'rank': only its own; a checkpoint then holds the banks of rank 0, and
            the model needs ``broadcast_buffers=False`` or they replace all others. Defaults to
            'gather'.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        size: int = 256,
        threshold: float = 0.95,
        threshold_on: str = 'prob',
        per_class: Optional[int] = None,
        sync: str = 'gather',
    ) -> None:
        check_range('contrast.bank.size', size, 1)
        check_choice('contrast.bank.threshold_on', threshold_on, ADMIT_ON)
        check_choice('contrast.bank.sync', sync, SYNCS)
        if per_class is not None:
            check_range('contrast.bank.per_class', per_class, 1)
        super().__init__(num_classes, size, channels, threshold, threshold_on)
        self.per_class = per_class
        self.sync = sync

    @torch.no_grad()
    def remember(self, feat: Tensor, logits: Tensor, label: Tensor, projection: nn.Module) -> None:
        """Admit pixels of labeled images, see :meth:`select`, after a projection of their rows."""
        rows, counts = self.select(feat, logits, label, self.per_class or len(feat))
        rows = projection(rows.to(feat))
        if self.sync == 'rank':
            return self.append(rows, counts)
        for each in zip(all_gather(rows.contiguous()), all_gather(counts)):
            self.append(*each)


class ClassQueue(nn.Module):
    """First-in-first-out queues of keys, one for each class, which all ranks of a run share.

    A queue is a ring, so that a step writes no more than what is new, however long it is. Keys are
    compared by their direction and kept as unit vectors in half precision. State lies in buffers:
    it is saved and resumed. Source: U2PL, see :class:`.UnreliableContrast`.

    Args:
        num_classes (int): Number of classes C.
        size (int): Keys of a class that are kept, K.
        channels (int): Length of a key, D.

    Attributes:
        feats (Tensor): (C, K, D).
        total (Tensor): (C,) long, how many keys of a class have ever come in; the next one goes to
            row ``total % K``.
    """

    feats: Tensor
    total: Tensor

    def __init__(self, num_classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer('feats', torch.zeros(num_classes, size, channels, dtype=torch.half))
        self.register_buffer('total', torch.zeros(num_classes, dtype=torch.long))

    @property
    def filled(self) -> Tensor:
        """Number of rows (C,) that hold a key."""
        return self.total.clamp(max=self.feats.shape[1])

    @torch.no_grad()
    def remember(self, rows: Tensor, mask: Tensor, per_class: int, projection: nn.Module) -> None:
        """Take in random ones of the rows (P, D') on which a class has a True in ``mask`` (C, P).

        At most ``per_class`` (<= K) for each class and rank, after a projection to D; those of all
        ranks go in.
        """
        scores = torch.rand(len(rows), device=rows.device).masked_fill(~mask, -math.inf)
        pixels, counts = _most_confident(scores, per_class)
        keys = F.normalize(projection(rows[pixels]).float(), dim=2).to(self.feats)
        for each in zip(all_gather(keys), all_gather(counts)):
            self._append(*each)

    def _append(self, keys: Tensor, counts: Tensor) -> None:
        """Append the first ``counts`` (C,) of the keys (C, k, D)."""
        number = torch.arange(keys.shape[1], device=keys.device)
        index = self._places((self.total[:, None] + number) % self.feats.shape[1])
        new, rows = (number < counts[:, None]).flatten(), self.feats.flatten(0, 1)
        keys = torch.where(new[:, None], keys.flatten(0, 1), rows.index_select(0, index))
        rows.index_copy_(0, index, keys)
        self.total += counts

    def draw(self, number: int) -> Tensor:
        """Keys (C, number, D), drawn with replacement; what an empty queue gives means nothing."""
        drawn = torch.rand(len(self.total), number, device=self.total.device)
        index = self._places((drawn * self.filled[:, None]).long())
        return self.feats.flatten(0, 1).index_select(0, index).unflatten(0, drawn.shape)

    def _places(self, rows: Tensor) -> Tensor:
        """Flat places of rows (C, k) of each class."""
        classes, size = self.feats.shape[:2]
        return (rows + size * torch.arange(classes, device=rows.device)[:, None]).flatten()


def _most_confident(scores: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """Pixels (C, k) of the highest scores (C, P), and how many of them (C,) are no -inf.

    In descending order where a class has k pixels, otherwise in the order of the image: so does
    the released code of CTT, which sorts only what it has to cut. There are always k, so that ranks
    of any image size can exchange what lies there.
    """
    last = scores.shape[1] - 1
    scores = F.pad(scores, (0, max(0, k - scores.shape[1])), value=-math.inf)
    top, pixels = scores.topk(k, dim=1)
    found = top > -math.inf
    counts = found.sum(dim=1)
    in_order = pixels.masked_fill(~found, last + 1).sort(dim=1).values
    return torch.where((counts == k)[:, None], pixels, in_order).clamp(max=last), counts
