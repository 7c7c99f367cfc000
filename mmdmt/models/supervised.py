"""mmseg's supervised loss without waiting for the device.

mmseg's cross entropy counts the ignored pixels on the host (``.item()``), and its accuracy selects
the others by boolean indexing, whose size the host has to know: each makes the host wait until the
GPU has done all that is queued, once for every head and step. Here the same values are tensors.
"""

from types import MethodType
from typing import Any, Dict, List, Optional

import torch
from mmengine.model import BaseDataPreprocessor
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmdmt.models.data_preprocessor import PaddingPreprocessor
from mmdmt.models.forward import stack_pixel_data, two_logits


def train_without_waiting(model: nn.Module) -> None:
    """Let all heads of a model that have mmseg's ordinary loss use :func:`dense_loss` for it.

    Heads with a loss of their own, such as ``PointHead`` or ``EncHead``, keep it, with its waits.
    Batches are copied to the device without waiting, too, for which mmseg has no setting.
    """
    ordinary = BaseDecodeHead.loss_by_feat
    for module in model.modules():
        if getattr(type(module), 'loss_by_feat', None) is ordinary:
            module.loss_by_feat = MethodType(dense_loss, module)
        if isinstance(module, BaseDataPreprocessor):
            module._non_blocking = True
        if type(module) in (SegDataPreProcessor, PaddingPreprocessor):
            module.forward = MethodType(_prepare_batch, module)


def _prepare_batch(
    preprocessor: SegDataPreProcessor, data: Dict[str, Any], training: bool = False
) -> Dict[str, Any]:
    """Mmseg's preprocessing, with the order of channels changed on the host.

    There it would be a list of indices, which is copied to the device for every image.
    """
    # Its name in maintained and in official mmseg.
    names = ('_channel_conversion', 'channel_conversion')
    flag = next(name for name in names if hasattr(preprocessor, name))
    if not getattr(preprocessor, flag):
        return type(preprocessor).forward(preprocessor, data, training)
    images = [image.flip(0) if len(image) == 3 else image for image in data['inputs']]
    setattr(preprocessor, flag, False)
    try:
        return type(preprocessor).forward(preprocessor, dict(data, inputs=images), training)
    finally:
        setattr(preprocessor, flag, True)


def dense_loss(
    head: BaseDecodeHead, seg_logits: Tensor, batch_data_samples: List[SegDataSample]
) -> Dict[str, Tensor]:
    """What ``BaseDecodeHead.loss_by_feat`` returns: the losses of a head, and ``acc_seg``.

    Values are the same. Pixel samplers and losses other than the softmax cross entropy are
    mmseg's and may wait.

    Args:
        head: The head.
        seg_logits: What its forward gives, (N, C, h, w).
        batch_data_samples: Ground truth of the N images.
    """
    label = stack_pixel_data(batch_data_samples, 'gt_sem_seg')
    logits = resize(
        seg_logits, size=label.shape[1:], mode='bilinear', align_corners=head.align_corners
    )
    weight = head.sampler.sample(logits, label[:, None]) if head.sampler is not None else None
    losses: Dict[str, Tensor] = {}
    for loss in losses_of(head):
        value = _decode_loss(loss, logits, label, weight, head.ignore_index)
        losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
    losses['acc_seg'] = pixel_accuracy(logits, label, head.ignore_index)
    return losses


def losses_of(head: BaseDecodeHead) -> List[nn.Module]:
    """The losses of a head, of which mmseg allows one or several."""
    losses = head.loss_decode
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]


def pixel_accuracy(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Percentage of pixels, but for ignored ones, whose class is predicted; a tensor (1,).

    As mmseg's ``accuracy``, 100 if all pixels are ignored. A head of one channel predicts class 1
    where its logit is positive; mmseg would compare with class 0 everywhere.
    """
    kept = label != ignore_index
    correct = (two_logits(logits.detach()).argmax(dim=1) == label) & kept
    eps = torch.finfo(torch.float32).eps
    return (100 * (correct.sum() + eps) / (kept.sum() + eps)).reshape(1)


def _decode_loss(
    loss: nn.Module, logits: Tensor, label: Tensor, weight: Optional[Tensor], ignore_index: int
) -> Tensor:
    """A loss of a head; a mean of cross entropies with its divisor as a tensor.

    The binary one of a head of one channel is the softmax one of both classes.
    """
    softmax = type(loss) is CrossEntropyLoss and loss.cls_criterion is cross_entropy
    binary = type(loss) is CrossEntropyLoss and loss.use_sigmoid and logits.shape[1] == 1
    exact = softmax or (binary and loss.class_weight is None)
    if not exact or loss.reduction != 'mean':
        return loss(logits, label, weight=weight, ignore_index=ignore_index)
    kept = label != ignore_index
    class_weight = divisor = None
    if loss.class_weight is not None:
        class_weight = torch.tensor(loss.class_weight, dtype=logits.dtype)
        class_weight = class_weight.to(logits.device, non_blocking=True)
        divisor = (class_weight[label.masked_fill(~kept, 0)] * kept).sum()
    elif loss.avg_non_ignore:
        divisor = kept.sum()
    return loss.loss_weight * cross_entropy(
        two_logits(logits) if binary else logits,
        label,
        weight,
        class_weight=class_weight,
        avg_factor=divisor,
        ignore_index=ignore_index,
    )
