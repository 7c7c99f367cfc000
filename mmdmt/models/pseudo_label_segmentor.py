"""The segmentor of offline methods: ground truth and stored pseudo-labels in one batch."""

import logging
from contextlib import nullcontext
from typing import Dict, List

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmdmt.checks import check_choice
from mmdmt.models.forward import (
    BATCH_STATISTICS,
    auxiliary_heads,
    is_dense_classifier,
    refuse_recomputing,
    stack_pixel_data,
    two_logits,
)
from mmdmt.models.modes import untracked_statistics
from mmdmt.models.supervised import losses_of
from mmdmt.registry import MODELS


@MODELS.register_module()
class PseudoLabelSegmentor(EncoderDecoder):
    """An ``EncoderDecoder`` whose loss weighs pseudo-labeled pixels.

    Networks, keys and predictions are those of mmseg's ``EncoderDecoder``, so that its checkpoint
    is an ordinary one. In training, samples made by ``mmdmt.LoadPseudoLabels`` carry a stored
    label, its confidence, and ``is_pseudo=True``; ``pseudo_loss`` takes the whole batch at once
    (DMT normalizes labeled and pseudo-labeled pixels together).

    It stands in for the cross entropy of every head, decode and auxiliary alike: it is multiplied
    by the head's ``loss_decode.loss_weight`` (of a list, by the sum of those of its cross
    entropies, or of all if it has none), and leaves out the head's ``ignore_index``. Class
    weights, losses of other kinds and pixel samplers have no place in it; a warning names them
    when the model is built.

    Args:
        pseudo_loss (dict): Config of a loss with the signature of
            :class:`~mmdmt.models.losses.DynamicMutualLoss`.
        ignore_index (int): Label that is not learned, which is that of stored labels below the
            threshold. Defaults to 255.
        batch_statistics (str): What batch norms see, as for online methods: ``'joint'`` (default),
            the whole batch; ``'separate'``, labeled and pseudo-labeled images in a pass for each;
            ``'domain'``, the same, and only pseudo-labeled images move the running statistics.
        **kwargs: Arguments of mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If a head does not give one dense map of logits, or a layer would move the
            statistics in the backward pass.
    """

    def __init__(
        self,
        *args,
        pseudo_loss: dict,
        ignore_index: int = 255,
        batch_statistics: str = 'joint',
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_choice('batch_statistics', batch_statistics, BATCH_STATISTICS)
        self.pseudo_loss = MODELS.build(pseudo_loss)
        self.ignore_index = ignore_index
        self.batch_statistics = batch_statistics
        refuse_recomputing(self, batch_statistics)
        heads = dict(decode_head=self.decode_head)
        for index, head in enumerate(auxiliary_heads(self)):
            heads[f'auxiliary_head[{index}]'] = head
        for name, head in heads.items():
            _check_head(name, head)
        self._warn_of_replaced_settings(heads)

    def _warn_of_replaced_settings(self, heads: Dict[str, BaseDecodeHead]) -> None:
        replaced = [
            f'{name} ({type(head).__name__}): {setting}'
            for name, head in heads.items()
            for setting in _replaced_settings(head)
        ]
        if replaced:
            print_log(
                f'The pseudo loss {type(self.pseudo_loss).__name__} replaces the losses of the '
                'heads in the rounds, where it has no place for these settings: '
                f'{"; ".join(replaced)}. They work in round 0 only.',
                logger='current',
                level=logging.WARNING,
            )

    def loss(self, inputs: Tensor, data_samples: List[SegDataSample]) -> Dict[str, Tensor]:
        """Losses of a batch of labeled and pseudo-labeled images.

        Args:
            inputs (Tensor): Normalized images, (N, 3, H, W).
            data_samples (list[SegDataSample]): ``gt_sem_seg`` of all samples;
                ``pseudo_confidence`` and ``is_pseudo`` of the pseudo-labeled ones.

        Returns:
            dict[str, Tensor]: ``decode.loss_pseudo``, ``aux_<i>.loss_pseudo``, and the health of
            the method: ``pseudo_keep_ratio``, the share of the pixels of pseudo-labeled images,
            without padding, that are learned; and what the loss reports of
            ``pseudo_disagreement``, ``pseudo_student_wins`` (shares of the learned ones) and
            ``mean_weight``. A batch without pseudo-labeled images has shares of 0.
        """
        targets = self._targets(data_samples, inputs)
        heads = [self.decode_head, *auxiliary_heads(self)]
        logits, *others = self._logits(heads, inputs, data_samples)
        loss, stats = self._head_loss(self.decode_head, logits, *targets)
        losses = {'decode.loss_pseudo': loss, **self._health(stats, *targets)}
        for index, (head, logits) in enumerate(zip(heads[1:], others)):
            losses[f'aux_{index}.loss_pseudo'], _ = self._head_loss(head, logits, *targets)
        return losses

    def _targets(self, samples: List[SegDataSample], inputs: Tensor):
        """Label (N, H, W), confidence (N, H, W) and is_pseudo (N,) of a batch."""
        label = stack_pixel_data(samples, 'gt_sem_seg')
        is_pseudo = torch.tensor([_is_pseudo(sample) for sample in samples])
        is_pseudo = is_pseudo.to(inputs.device, non_blocking=True)
        ones = torch.ones_like(label[0], dtype=torch.float32)
        confidence = torch.stack([_confidence(sample, ones) for sample in samples])
        return label, confidence, is_pseudo

    def _logits(
        self, heads: List[BaseDecodeHead], inputs: Tensor, samples: List[SegDataSample]
    ) -> List[Tensor]:
        """Logits (N, C, h, w) of each head."""
        if self.batch_statistics == 'joint':
            feats = self.extract_feat(inputs)
            return [two_logits(head(feats)) for head in heads]
        found: List[List[Tensor]] = [[] for _ in inputs]  # of each image, of each head
        for pseudo in (False, True):
            chosen = [i for i, sample in enumerate(samples) if _is_pseudo(sample) == pseudo]
            foreign = self.batch_statistics == 'domain' and not pseudo
            with untracked_statistics(self) if foreign else nullcontext():
                feats = (
                    self.extract_feat(torch.stack([inputs[i] for i in chosen])) if chosen else []
                )
                maps = [two_logits(head(feats)) for head in heads if chosen]
            for index, *own in zip(chosen, *maps):
                found[index] = own
        return [torch.stack(maps) for maps in zip(*found)]

    def _head_loss(self, head, logits, label, confidence, is_pseudo):
        logits = resize(
            logits, size=label.shape[1:], mode='bilinear', align_corners=self.align_corners
        )
        label = self._without_ignored(label, head)
        loss, stats = self.pseudo_loss(
            logits, label, confidence, is_pseudo, ignore_index=self.ignore_index
        )
        return loss * _loss_weight(head), stats

    def _without_ignored(self, label: Tensor, head: BaseDecodeHead) -> Tensor:
        """Labels with this model's ``ignore_index`` in place of the head's."""
        if head.ignore_index in (None, self.ignore_index):
            return label
        return label.masked_fill(label == head.ignore_index, self.ignore_index)

    def _health(
        self, stats: Dict[str, Tensor], label: Tensor, confidence: Tensor, is_pseudo: Tensor
    ) -> Dict[str, Tensor]:
        """Counts of the loss as shares of the pseudo-labeled pixels."""
        if 'keep_ratio' in stats:  # the loss makes its own labels and does not read the stored ones
            return dict(pseudo_keep_ratio=stats['keep_ratio'])
        pseudo = is_pseudo[:, None, None]
        learned = (self._without_ignored(label, self.decode_head) != self.ignore_index) & pseudo
        # Padding has the confidence 0 (see `_confidence`), or the 255 of a transform.
        inside = (confidence > 0) & (confidence <= 1) & pseudo
        kept, pixels = learned.sum(), (inside | learned).sum()
        health = dict(pseudo_keep_ratio=kept / pixels.clamp(min=1))
        for key in ('disagreement', 'student_wins'):
            if key in stats:
                health[f'pseudo_{key}'] = stats[key] / kept.clamp(min=1)
        if 'mean_weight' in stats:
            health['mean_weight'] = stats['mean_weight']
        return health


def _check_head(name: str, head: nn.Module) -> None:
    """Refuse heads whose forward is not one dense map of logits for a softmax."""
    if not is_dense_classifier(type(head)):
        raise ValueError(
            f'{name} is a {type(head).__name__}, which has a loss or a prediction of its own: the '
            'pseudo loss needs a head whose forward gives one dense map of logits, such as '
            'FCNHead, DepthwiseSeparableASPPHead, UPerHead or SegformerHead'
        )


def _loss_weight(head: BaseDecodeHead) -> float:
    """Weight of the cross entropies of a head, or of all its losses if it has none."""
    losses = losses_of(head)
    replaced = [loss for loss in losses if isinstance(loss, CrossEntropyLoss)] or losses
    return sum(getattr(loss, 'loss_weight', 1.0) for loss in replaced)


def _replaced_settings(head: BaseDecodeHead) -> List[str]:
    """What a pseudo loss does not do although the config of the head asks for it."""
    losses = losses_of(head)
    names = [type(loss).__name__ for loss in losses]
    found = []
    if len(losses) > 1:
        found.append(f'loss_decode=[{", ".join(names)}]')
    elif not isinstance(losses[0], CrossEntropyLoss):
        found.append(f'loss_decode={names[0]}')
    for loss in losses:
        if isinstance(loss, CrossEntropyLoss):
            # Of one channel, a sigmoid is the softmax of both classes.
            sigmoid = ('use_sigmoid',) if head.out_channels > 1 else ()
            keys = ('class_weight', *sigmoid, 'use_mask')
            values = {key: getattr(loss, key, None) for key in keys}
            found += [f'{k}={v}' for k, v in values.items() if v is not None and v is not False]
    if head.sampler is not None:
        found.append(f'sampler={type(head.sampler).__name__}')
    return found


def _is_pseudo(sample: SegDataSample) -> bool:
    """Whether the label of a sample is a stored one."""
    return bool(sample.metainfo.get('is_pseudo', False))


def _confidence(sample: SegDataSample, default: Tensor) -> Tensor:
    """Stored confidence (H, W) of a sample in [0, 1]; that of ground truth is not read.

    The data preprocessor has padded image and label at the bottom and right. There it is 0, so
    that padding is no pixel with a pseudo-label.
    """
    if 'pseudo_confidence' not in sample:
        return default
    confidence = sample.pseudo_confidence.data.squeeze(0)
    height, width = (full - own for full, own in zip(default.shape, confidence.shape))
    return F.pad(confidence, (0, width, 0, height))
