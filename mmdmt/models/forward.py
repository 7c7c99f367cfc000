"""What every online method needs from an ordinary mmseg segmentor: dense logits and losses."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor, EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mmdmt.models.modes import untracked_statistics, without_gradient
from mmdmt.models.perturbations import Perturb, perturbed_features

#: Over which images batch norms of a student take their statistics.
BATCH_STATISTICS = ('joint', 'separate', 'domain')


class Targets(NamedTuple):
    """What is to be learned on the pixels of unlabeled images.

    Attributes:
        label: (N, H, W) long.
        confidence: (N, H, W) in [0, 1].
        valid: (N, H, W) bool, False on padding.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor

    def label_with_ignore(self, ignore_index: int = 255) -> Tensor:
        """Labels (N, H, W), ``ignore_index`` on pixels that are not valid."""
        return self.label.masked_fill(~self.valid, ignore_index)


def image_metas(images: Tensor, samples: Optional[List[SegDataSample]] = None) -> List[dict]:
    """Meta information of each image; without data samples that of one that nothing was done to."""
    if samples is not None:
        return [sample.metainfo for sample in samples]
    size = tuple(images.shape[2:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
    return [meta] * len(images)


def two_logits(logits: Tensor) -> Tensor:
    """Logits (N, C, *) of classes: of one channel ``z`` those of both, ``(0, z)``.

    A head with ``out_channels=1`` predicts class 1 by ``sigmoid(z)``, which is the softmax of these
    two: probabilities, cross entropies and gradients are the same.
    """
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def class_probabilities(sample: SegDataSample) -> Tensor:
    """Probabilities (C, H, W) in float32 of a predicted sample; C is 2 for a head of one channel.

    Of such a head mmseg puts the sigmoid into ``seg_logits``.
    """
    found = sample.seg_logits.data.float()
    return found.softmax(dim=0) if len(found) > 1 else torch.cat([1 - found, found])


def dense_logits(segmentor: BaseSegmentor, images: Tensor) -> Tensor:
    """Logits of a segmentor at the resolution of its input, whatever its head.

    ``mode='predict'`` would undo flips and padding and resize to the original image, so that its
    labels would not lie on the pixels the student sees; ``encode_decode`` keeps the geometry.
    Normalized images (N, 3, H, W) become logits (N, C, H, W), two for a head of one channel.
    """
    backbone, head = (getattr(segmentor, name, None) for name in ('backbone', 'decode_head'))
    # Some heads and backbones, as of DDRNet and PIDNet, give what only their loss takes while they
    # train: they see eval mode, layers inside them do not.
    branching = [] if is_dense_classifier(type(head)) else [backbone, head]
    trained = [part for part in branching if isinstance(part, nn.Module) and part.training]
    try:
        for part in trained:
            part.training = False
        return two_logits(segmentor.encode_decode(images, image_metas(images)))
    finally:
        for part in trained:
            part.training = True


@without_gradient()
def pseudo_label(segmentor: BaseSegmentor, images: Tensor, valid: Tensor) -> Targets:
    """:func:`hard_labels` of a network, in the mode it is in, for images (N, 3, H, W).

    Labeling with a student, which is what has gradients, leaves its batch-norm statistics alone.
    """
    is_student = any(parameter.requires_grad for parameter in segmentor.parameters())
    with untracked_statistics(segmentor) if is_student else nullcontext():
        return hard_labels(dense_logits(segmentor, images), valid)


@torch.no_grad()
def hard_labels(logits: Tensor, valid: Tensor) -> Targets:
    """Classes that logits (N, C, H, W) predict, as targets without gradient.

    ``confidence``, the largest softmax probability, is float32 also under mixed precision;
    ``valid`` is (N, H, W) bool, False on padding.
    """
    confidence, label = logits.float().softmax(dim=1).max(dim=1)
    return Targets(label, confidence, valid)


def has_joint_forward(segmentor: BaseSegmentor) -> bool:
    """Whether one forward pass can serve labeled and unlabeled images together.

    It can where the decode head is a dense classifier, ``loss = loss_by_feat(forward(x))``. Heads
    with a loss of their own (query based, cascaded, point refinement) get two passes.
    """
    return (
        isinstance(segmentor, EncoderDecoder)
        and type(segmentor).encode_decode is EncoderDecoder.encode_decode
        and is_dense_classifier(type(getattr(segmentor, 'decode_head', None)))
    )


def is_dense_classifier(head_type: type) -> bool:
    """Whether ``forward`` of a head gives one dense logit map, also in training.

    mmseg has no flag for it. But a head whose forward gives something else, such as the tuples of
    ``EncHead`` and ``DAHead`` or of ``DDRHead`` and ``PIDHead`` in training mode, must have a
    loss or a prediction of its own that takes it.
    """
    return issubclass(head_type, BaseDecodeHead) and all(
        getattr(head_type, name) is getattr(BaseDecodeHead, name)
        for name in ('loss', 'predict', 'loss_by_feat')
    )


def joint_forward(
    segmentor: BaseSegmentor,
    sup: Tensor,
    sup_samples: List[SegDataSample],
    unsup: Tensor,
    with_sup: bool = False,
    batch_statistics: str = 'joint',
    perturb: Optional[Perturb] = None,
) -> Tuple[Dict[str, Tensor], Tensor]:
    """Loss on labeled images and logits on unlabeled ones, in one forward where possible.

    Args:
        segmentor (BaseSegmentor): The student.
        sup (Tensor): Labeled images, (N_l, 3, H, W).
        sup_samples (list[SegDataSample]): Their ground truth.
        unsup (Tensor): Unlabeled images of the same size, (N_u, 3, H, W).
        with_sup (bool): Whether logits of the labeled images are wanted too, before the others.
        batch_statistics (str): ``'joint'``: one pass where possible. ``'separate'``: a pass for
            each kind of images, with batch statistics of its own. ``'domain'``: the same, and only
            unlabeled images move the running statistics, which are then those of their domain.
        perturb (callable, optional): What happens to the list of feature maps (N_u, C, H, W) of
            the unlabeled images before they enter the decode head. There is a logit map for each
            image that it makes of them.

    Returns:
        tuple[dict[str, Tensor], Tensor]: mmseg's loss dict of the labeled images (keys as
        ``decode.loss_ce``), and logits (N_u, C, H, W), ``with_sup`` (N_l + N_u, C, H, W).
    """

    def change(maps: Sequence[Tensor]) -> List[Tensor]:
        others = perturb([each[-len(unsup) :] for each in maps])
        return [torch.cat([each[: -len(unsup)], other]) for each, other in zip(maps, others)]

    same_size = sup.shape[2:] == unsup.shape[2:]
    if batch_statistics != 'joint' or not has_joint_forward(segmentor) or not same_size:
        own = batch_statistics == 'domain'
        with untracked_statistics(segmentor) if own else nullcontext():
            losses = segmentor.loss(sup, sup_samples)
            sup_logits = [dense_logits(segmentor, sup)] if with_sup else []
        with perturbed_features(segmentor, change) if perturb else nullcontext():
            return losses, torch.cat([*sup_logits, dense_logits(segmentor, unsup)])
    count = len(sup)
    feats = segmentor.extract_feat(torch.cat([sup, unsup]))
    feats = change(feats) if perturb else feats
    logits = segmentor.decode_head(feats)
    losses = add_prefix(segmentor.decode_head.loss_by_feat(logits[:count], sup_samples), 'decode')
    if segmentor.with_auxiliary_head:
        sup_feats = [feat[:count] for feat in feats]
        losses.update(segmentor._auxiliary_head_forward_train(sup_feats, sup_samples))
    wanted = logits if with_sup else logits[count:]
    options = dict(mode='bilinear', align_corners=segmentor.align_corners)
    return losses, resize(two_logits(wanted), size=unsup.shape[2:], **options)


def refuse_recomputing(model: nn.Module, batch_statistics: str) -> None:
    """Refuse layers that run again in the backward pass, where they would move statistics anyway.

    Raises:
        ValueError: If a layer has ``with_cp=True`` and ``batch_statistics`` is ``'domain'``.
    """
    recomputing = [name for name, m in model.named_modules() if getattr(m, 'with_cp', False)]
    if batch_statistics == 'domain' and recomputing:
        raise ValueError(
            f"`batch_statistics` is 'domain', but `{recomputing[0]}` has with_cp=True, so that "
            'labeled images would move the running statistics in the backward pass: set '
            "with_cp=False, or 'separate'"
        )


def weighted_losses(losses: Dict[str, Tensor], weight: float, prefix: str) -> Dict[str, Tensor]:
    """Put a prefix before the keys of a loss dict and a weight on its losses.

    Values without ``loss`` in their key, such as accuracies, are not weighted.
    """
    return {
        f'{prefix}{key}': value * weight if 'loss' in key else value
        for key, value in losses.items()
    }


def auxiliary_heads(segmentor: EncoderDecoder) -> List[nn.Module]:
    """The auxiliary heads of a segmentor as a list, empty if it has none."""
    if not segmentor.with_auxiliary_head:
        return []
    heads = segmentor.auxiliary_head
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def stack_pixel_data(samples: List[SegDataSample], field: str) -> Tensor:
    """Stack one pixel field, such as ``gt_sem_seg``, of all samples into (N, H, W)."""
    return torch.stack([getattr(sample, field).data.squeeze(0) for sample in samples])


def is_padded(samples: List[SegDataSample]) -> bool:
    """Whether a sample has padding or pixels not measured, without waiting for a GPU."""
    return any(any(each.metainfo['padding_size']) or 'measured' in each for each in samples)


def valid_mask(sizes: Sequence[Tuple[int, int]], images: Tensor) -> Tensor:
    """(N, H, W) bool, True on the top left (h, w) of each of the images (N, C, H, W)."""
    limits = torch.tensor([list(size) for size in sizes]).to(images.device, non_blocking=True)
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < limits[:, :1]
    columns = torch.arange(width, device=images.device) < limits[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def only_measured(valid: Tensor, samples: List[SegDataSample]) -> Tensor:
    """``valid`` (N, H, W) without the pixels that ``PackSemiInputs`` notes as not measured."""
    noted = [index for index, sample in enumerate(samples) if 'measured' in sample]
    valid = valid.clone() if noted else valid  # without a copy in each step of ordinary images
    for index in noted:
        measured = samples[index].measured.data[0]
        valid[index, : len(measured), : measured.shape[1]] &= measured
    return valid


def not_padded(samples: List[SegDataSample], images: Tensor) -> Tensor:
    """(N, H, W) bool, False on padding by the preprocessor and where nothing was measured."""
    height, width = images.shape[-2:]
    padding = [sample.metainfo.get('padding_size', (0, 0, 0, 0)) for sample in samples]
    valid = valid_mask([(height - each[3], width - each[1]) for each in padding], images)
    return only_measured(valid, samples)
