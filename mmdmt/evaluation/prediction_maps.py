"""What metrics read of a prediction: logits, classes and truth, checked."""

import math
from typing import Any, Dict, NamedTuple

import torch
from torch import Tensor

from mmdmt.finite import NonFiniteError

# How far the logit of the predicted class may be from the largest one: rounding.
_TOLERANCE = 1e-3
# mmseg's one-channel heads give probabilities; float32 has no larger number below 1.
_EPS = 2.0**-24


class PredictionMaps(NamedTuple):
    """Of one image.

    Attributes:
        logits: (C, H, W) float; their softmax are the predicted probabilities.
        pred: (H, W) long, predicted classes.
        label: (H, W) long, true classes.
        name: Path of the image.
    """

    logits: Tensor
    pred: Tensor
    label: Tensor
    name: str


def prediction_maps(sample: Dict[str, Any], num_classes: int, ignore_index: int) -> PredictionMaps:
    """Read a data sample of any mmseg segmentor, as an evaluator hands it to its metrics.

    ``seg_logits`` are raw logits, or logarithms of probabilities (ensembles), at the original
    size. Those of a head with one channel have been through a sigmoid: p becomes the logits
    (0, log(p / (1 - p))) of background and foreground.

    Raises:
        KeyError: The sample lacks a map.
        ValueError: Maps that do not fit each other or the classes of the dataset; classes that
            were not predicted from these logits.
        NonFiniteError: Logits are NaN or infinite.
    """
    name = str(sample.get('img_path'))
    for key in ('seg_logits', 'pred_sem_seg', 'gt_sem_seg'):
        if key not in sample:
            raise KeyError(
                f'`{key}` is missing from the prediction of {name}: this metric needs the logits '
                'that a segmentor predicts, its classes, and the truth (LoadAnnotations)'
            )
    logits = sample['seg_logits']['data']
    # (1, H, W), or (H, W) of some models.
    pred, label = (sample[key]['data'] for key in ('pred_sem_seg', 'gt_sem_seg'))
    pred = pred.reshape(pred.shape[-2:]).long()
    label = label.reshape(label.shape[-2:]).to(pred)
    shapes = {tuple(each.shape) for each in (logits[0], pred, label)}
    if len(shapes) > 1:
        raise ValueError(
            f'{name}: `seg_logits` {tuple(logits.shape)}, `pred_sem_seg` {tuple(pred.shape)} and '
            f'`gt_sem_seg` {tuple(label.shape)} differ in size: load masks before the image is '
            'resized, so that predictions are compared at the original size'
        )
    has_one = len(logits) == 1 and num_classes == 2
    logits = _logits_of_foreground(logits, name) if has_one else logits.float()
    if len(logits) != num_classes:
        raise ValueError(
            f'{name}: `seg_logits` have {len(logits)} channels, but the dataset has {num_classes} '
            'classes: give the decode head as many, or out_channels=1 for two classes'
        )
    wrong = (label != ignore_index) & ((label < 0) | (label >= num_classes))
    if wrong.any():
        raise ValueError(
            f'{name}: the truth has the value {int(label[wrong][0])}, which is neither one of '
            f'{num_classes} classes nor {ignore_index} (unlabeled): correct the mask or '
            '`reduce_zero_label`'
        )
    maps = PredictionMaps(logits, pred, label, name)
    _check(maps, has_one)
    return maps


def _logits_of_foreground(prob: Tensor, name: str) -> Tensor:
    if ((prob < 0) | (prob > 1)).any():
        raise ValueError(
            f'{name}: `seg_logits` of one channel must be probabilities, as mmseg gives them, but '
            f'they reach from {float(prob.min()):g} to {float(prob.max()):g}'
        )
    logit = torch.logit(prob.float(), eps=_EPS)
    return torch.cat([torch.zeros_like(logit), logit])


def _check(maps: PredictionMaps, is_thresholded: bool) -> None:
    """Refuse NaN, and logits from which the classes were not predicted."""
    if is_thresholded:  # by any threshold: foreground is where it is more probable than elsewhere
        odds, foreground = maps.logits[1], maps.pred == 1
        inside, outside = odds[foreground], odds[~foreground]
        both = len(inside) and len(outside)
        gap = outside.max() - inside.min() if both else odds.sum() * 0
    else:
        chosen = maps.logits.gather(0, maps.pred[None])
        gap = (maps.logits.amax(dim=0) - chosen).max()
    gap = float(gap)
    if math.isnan(gap):
        raise NonFiniteError(
            f'the network predicts NaN or infinity for {maps.name}: its training has diverged, or '
            'numbers overflow (half precision); use an earlier checkpoint or a lower learning rate'
        )
    if gap > _TOLERANCE:
        raise ValueError(
            f'{maps.name}: `pred_sem_seg` is not what `seg_logits` predict (another class is '
            f'larger by {gap:.3g}), so they say nothing about its confidence. Of test-time '
            "augmentation mmseg's SegTTAModel keeps the logits of the last view only: set "
            "tta_model=dict(type='mmdmt.MeanTTAModel')"
        )
