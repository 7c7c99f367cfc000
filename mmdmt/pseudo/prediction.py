"""Class probabilities of whole images, with mixed precision and test-time augmentation."""

from itertools import product
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor

from mmdmt.checks import refuse_unknown_keys
from mmdmt.models.forward import class_probabilities

Batch = Dict[str, list]


def check_tta(tta: Optional[Dict[str, Any]], key: str) -> None:
    """Raise a ``ValueError`` for test-time augmentation with unknown keys or bad scales."""
    if tta is None:
        return
    refuse_unknown_keys(key, tta, {'flip', 'scales'})
    scales = tta.get('scales', [1.0])
    if not scales or min(scales) <= 0:
        raise ValueError(f'`{key}.scales` must be positive factors, got {scales}')


def predict_probabilities(
    model: BaseSegmentor, batch: Batch, amp: bool = False, tta: Optional[Dict[str, Any]] = None
) -> List[Tensor]:
    """Class probabilities of images at their original size, in one pass per view.

    The network's own preprocessing and test mode (whole image or sliding window) are used.
    Images of different sizes are predicted one by one.

    Args:
        model: A segmentor in eval mode.
        batch: ``inputs``, a list of (3, h, w) images, and ``data_samples``, as a test pipeline
            and mmengine's ``pseudo_collate`` make them.
        amp: Whether to predict in half precision (bfloat16 on a CPU).
        tta: ``dict(flip=True, scales=[0.75, 1.0])``: the probabilities are averaged over scales
            and, with ``flip``, over both orientations. Defaults to the image as it is.

    Returns:
        One (C, H, W) float32 tensor per image, which sums to 1 over C; 0 where nothing was
        measured, as ``PackSemiInputs`` notes in ``measured``.
    """
    if len({image.shape for image in batch['inputs']}) > 1:
        singles = [dict(inputs=[image], data_samples=[sample]) for image, sample in _rows(batch)]
        return [predict_probabilities(model, single, amp, tta)[0] for single in singles]
    batch = model.data_preprocessor.cast_data(batch)  # views are made on the device
    total, count = None, 0
    for view in _views(batch, tta or {}):
        probs = _predict(model, view, amp)
        # In place: a map of 150 classes at 2048 pixels does not fit often.
        total = probs if total is None else [a.add_(b) for a, b in zip(total, probs)]
        count += 1
    for prob, sample in zip(total, batch['data_samples']):
        if count > 1:
            prob.div_(count)
        if 'measured' in sample:
            measured = sample.measured.data[None].float().to(prob.device)
            prob.mul_(F.interpolate(measured, prob.shape[1:], mode='nearest')[0])
    return total


def _rows(batch: Batch) -> Iterator[Tuple]:
    return zip(batch['inputs'], batch['data_samples'])


def _views(batch: Batch, tta: Dict[str, Any]) -> Iterator[Batch]:
    """The batch at each scale and orientation, noted in the samples so that mmseg undoes it."""
    flips = [False, True] if tta.get('flip') else [False]
    for scale, flip in product(tta.get('scales', [1.0]), flips):
        rows = [_view(image, sample, scale, flip) for image, sample in _rows(batch)]
        yield dict(inputs=[row[0] for row in rows], data_samples=[row[1] for row in rows])


def _view(
    image: Tensor, sample: SegDataSample, scale: float, flip: bool
) -> Tuple[Tensor, SegDataSample]:
    # A sample of its own: predictions are written into it.
    sample = SegDataSample(metainfo=sample.metainfo)
    if scale != 1:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image[None].float(), size, mode='bilinear', antialias=True)[0]
        sample.set_metainfo(dict(img_shape=tuple(size), pad_shape=tuple(size)))
    if flip:
        image = image.flip(-1)
        sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    return image, sample


def _predict(model: BaseSegmentor, batch: Batch, amp: bool) -> List[Tensor]:
    data = model.data_preprocessor(batch, False)
    device = data['inputs'][0].device  # an ensemble's images are a list
    with torch.autocast(device.type, enabled=amp):
        samples = model.predict(data['inputs'], data['data_samples'])
    return [class_probabilities(sample) for sample in samples]
