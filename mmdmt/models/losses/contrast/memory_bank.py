"""Memory of pixel features per class."""

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdmt.models.losses.contrast.anchors import gather_pixels

#: What :class:`ClassMemoryBank` compares with its threshold.
ADMIT_ON = ('prob', 'logit')


class ClassMemoryBank(nn.Module):
    """First-in-first-out memory of the most certain, correctly classified features of each class.

    Xiao et al., "Semi-supervised Semantic Segmentation with Cross Teacher Training",
    Neurocomputing 508, 2022 (arXiv 2209.01327). State lies in buffers: it follows the module to
    a device and into checkpoints. ``update`` waits for nothing on the device.

    Under DDP every rank has a bank of its own images; wrap the model with
    ``broadcast_buffers=False`` or rank 0's bank replaces all others.

    Args:
        num_classes (int): Number of classes C.
        capacity (int): Features kept per class, K. CTT: 256.
        channels (int): Length of a feature, D.
        threshold (float): Certainty a pixel needs to be admitted. Defaults to 0.95, as published.
        admit_on (str): What ``threshold`` is compared with: ``'prob'``, the largest softmax value
            (the paper), or ``'logit'``, the largest raw logit (the published code, where nearly
            every correct pixel passes). Defaults to ``'prob'``.

    Attributes:
        feats (Tensor): (C, K, D), oldest first; rows from ``counts`` on are not filled.
        counts (Tensor): (C,) long, number of filled rows.

    Raises:
        ValueError: If a size is not positive or ``admit_on`` is unknown.
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
        if min(num_classes, capacity, channels) < 1:
            raise ValueError(
                '`num_classes`, `capacity` and `channels` must be positive, got '
                f'{num_classes}, {capacity} and {channels}'
            )
        if admit_on not in ADMIT_ON:
            raise ValueError(f'`admit_on` must be one of {ADMIT_ON}, got {admit_on!r}')
        self.threshold = threshold
        self.admit_on = admit_on
        self.register_buffer('feats', torch.zeros(num_classes, capacity, channels))
        self.register_buffer('counts', torch.zeros(num_classes, dtype=torch.long))

    @property
    def is_full(self) -> Tensor:
        """Whether every row of every class is filled: a bool scalar on the bank's device.

        ``if bank.is_full`` waits for the device; multiply a loss with it instead.
        """
        return (self.counts == self.feats.shape[1]).all()

    @property
    def filled(self) -> Tensor:
        """Which rows hold a feature: (C, K) bool."""
        rows = torch.arange(self.feats.shape[1], device=self.counts.device)
        return rows < self.counts[:, None]

    @torch.no_grad()
    def update(self, feat: Tensor, logits: Tensor, label: Tensor, per_class: int) -> None:
        """Admit the most certain pixels that are classified correctly.

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
        self._check_channels(feat.shape[1])
        self.append(*self.select(feat, logits, label, per_class))

    @torch.no_grad()
    def select(
        self, feat: Tensor, logits: Tensor, label: Tensor, per_class: int
    ) -> Tuple[Tensor, Tensor]:
        """Choose what :meth:`update` would append, for a projection or an exchange in between.

        Args:
            feat (Tensor): (N, D', H, W) features of any length.
            logits (Tensor): As for :meth:`update`.
            label (Tensor): As for :meth:`update`.
            per_class (int): As for :meth:`update`; more than ``capacity`` is never chosen.

        Returns:
            tuple[Tensor, Tensor]: Features (C, k, D') with ``k = min(per_class, capacity)``, and
            how many of them (C,) each class has; rows beyond are meaningless.

        Raises:
            ValueError: As :meth:`update`.
        """
        self._check(feat, logits, label, per_class)
        scores = self._scores(logits, label.reshape(-1))
        per_class = min(per_class, self.feats.shape[1])
        # A fixed number of rows, so that ranks of any image size can exchange them.
        missing = max(0, per_class - scores.shape[1])
        pixels, counts = _most_certain(F.pad(scores, (0, missing), value=-math.inf), per_class)
        pixels = pixels.clamp(max=scores.shape[1] - 1)
        return gather_pixels(feat, pixels.flatten()).unflatten(0, pixels.shape), counts

    @torch.no_grad()
    def append(self, rows: Tensor, counts: Tensor) -> None:
        """Append features of every class, dropping the oldest on overflow.

        Args:
            rows (Tensor): (C, k, D) features, k at most ``capacity``.
            counts (Tensor): (C,) how many of them, from the first, are real.
        """
        self._check_channels(rows.shape[2])
        self._append(rows.to(self.feats), counts)

    def _scores(self, logits: Tensor, label: Tensor) -> Tensor:
        """Certainty (C, P) of each pixel for the class it is admitted to, -inf for the others."""
        logits = logits.movedim(1, -1).reshape(-1, logits.shape[1]).float()
        values = logits.softmax(dim=1) if self.admit_on == 'prob' else logits
        certainty, predicted = values.max(dim=1)
        admitted = (predicted == label) & (certainty >= self.threshold)
        classes = torch.arange(len(self.counts), device=label.device)
        own = (classes[:, None] == label) & admitted
        return certainty.expand_as(own).masked_fill(~own, -math.inf)

    def _append(self, new: Tensor, new_counts: Tensor) -> None:
        """Append the first ``new_counts`` of (C, k, D) rows, dropping the oldest on overflow."""
        capacity = self.feats.shape[1]
        total = (self.counts + new_counts)[:, None]
        position = torch.arange(capacity, device=new.device).expand(len(new), -1)
        # Place in the queue of old and new rows of what ends up at each position.
        queue = position + (total - capacity).clamp(min=0)
        is_new = (queue >= self.counts[:, None]) & (queue < total)
        # Positions beyond the queue keep what they hold.
        old = torch.where(queue < total, queue, position).clamp(max=capacity - 1)
        source = torch.where(is_new, queue - self.counts[:, None] + capacity, old)
        rows = torch.cat([self.feats, new], dim=1)
        self.feats.copy_(rows.gather(1, source[:, :, None].expand(-1, -1, rows.shape[2])))
        self.counts.copy_(total.squeeze(1).clamp(max=capacity))

    def _check_channels(self, channels: int) -> None:
        if channels != self.feats.shape[2]:
            raise ValueError(
                f'features must have the {self.feats.shape[2]} channels of the bank, got {channels}'
            )

    def _check(self, feat: Tensor, logits: Tensor, label: Tensor, per_class: int) -> None:
        num_classes = len(self.feats)
        pixels = (feat.shape[0], *feat.shape[2:])
        if tuple(label.shape) != pixels:
            raise ValueError(
                f'`feat` must be (N, D, H, W) and `label` (N, H, W), got '
                f'{tuple(feat.shape)} and {tuple(label.shape)}'
            )
        if tuple(logits.shape) != (pixels[0], num_classes, *pixels[1:]):
            raise ValueError(
                f'`logits` must be (N, {num_classes}, H, W) on the pixels of `feat`, '
                f'{tuple(feat.shape)}, got {tuple(logits.shape)}'
            )
        if per_class < 1:
            raise ValueError(f'`per_class` must be positive, got {per_class}')


def _most_certain(scores: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """Pixels (C, k) of the highest scores, and how many of them (C,) are no -inf.

    In descending order where a class has k pixels, otherwise in the order of the image: so does
    the published code, which sorts only what it has to cut.
    """
    top, pixels = scores.topk(k, dim=1)
    found = top > -math.inf
    counts = found.sum(dim=1)
    last = scores.shape[1] - 1
    in_order = pixels.masked_fill(~found, last + 1).sort(dim=1).values.clamp(max=last)
    return torch.where((counts == k)[:, None], pixels, in_order), counts
