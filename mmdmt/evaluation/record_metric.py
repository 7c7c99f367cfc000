"""Pixel counts of every image as one JSON file, for tables, statistics and reports."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

import numpy as np
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmdmt.files import write_text_atomically
from mmdmt.registry import METRICS


class ImageCounts(NamedTuple):
    """Confusion of an image as its entries that are not 0.

    Attributes:
        name: Path of the image.
        cells: (K,) of ``truth * num_classes + prediction``.
        pixels: (K,) pixels of each.
    """

    name: str
    cells: np.ndarray
    pixels: np.ndarray


@METRICS.register_module()
class RecordMetric(BaseMetric):
    """Writes what was predicted, counted per image and gathered over all ranks, as JSON.

    It stands in any evaluator, alone or beside others, also of mmpretrain, where an image counts as
    one pixel. The file has::

        {"classes": [...],
         "metrics": {"mIoU": .., "aAcc": .., "mAcc": ..},
         "per_class": {"IoU": [...], "Acc": [...]},
         "confusion": [[...]],          # rows: true class, columns: predicted class
         "images": [{"name": .., "intersect": [C], "pred": [C], "label": [C]}]}

    Metrics are those of mmseg's ``IoUMetric``, not rounded: percent, pooled over all pixels, pixels
    of ``ignore_index`` left out. A class that neither truth nor predictions show has no IoU (null)
    and does not count for the mean. The log gets the metrics as ``record/mIoU`` and so on.

    Args:
        out_file: JSON file; by default none is written. Where a loop evaluates several networks,
            it is that of the last one.
        facts: Further entries of the file, such as ``dict(network='teacher')``.
        ignore_index: Label of pixels that do not count. Defaults to 255.
        collect_device: As of mmengine's metrics.
        prefix: Of the names in the log. Defaults to 'record', so that no name is given twice.

    Raises:
        ValueError: A label is neither a class nor ``ignore_index``; it names the image.
    """

    default_prefix = 'record'

    def __init__(
        self,
        out_file: Union[str, Path, None] = None,
        facts: Optional[Mapping[str, Any]] = None,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.out_file = out_file
        self.facts = dict(facts or {})
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count a batch.

        Args:
            data_batch: Not used.
            data_samples: With ``pred_sem_seg`` and ``gt_sem_seg``, or ``pred_label`` and
                ``gt_label``, and ``img_path``.
        """
        for sample in data_samples:
            if 'pred_label' in sample:
                truth, prediction = sample['gt_label'], sample['pred_label']
            else:
                truth, prediction = sample['gt_sem_seg']['data'], sample['pred_sem_seg']['data']
            # Images of arrays, such as those of CIFAR-10, have no path.
            name = str(sample.get('img_path', sample.get('sample_idx', len(self.results))))
            self.results.append(self._count(name, _flat(truth), _flat(prediction)))

    def _count(self, name: str, truth: np.ndarray, prediction: np.ndarray) -> ImageCounts:
        size = len(self.dataset_meta['classes'])
        known = truth != self.ignore_index
        truth, prediction = truth[known], prediction[known]
        for what, values in (('label', truth), ('prediction', prediction)):
            wrong = values[(values < 0) | (values >= size)]
            if wrong.size:
                raise ValueError(
                    f'the {what} of {name} has the value {wrong[0]}, which is neither one of '
                    f'{size} classes nor {self.ignore_index}: correct the masks or `metainfo`'
                )
        cells, pixels = np.unique(truth * size + prediction, return_counts=True)
        return ImageCounts(name, cells, pixels)

    def compute_metrics(self, results: List[ImageCounts]) -> Dict[str, float]:
        """Write the file.

        Args:
            results: Of all images.

        Returns:
            dict[str, float]: mIoU, aAcc and mAcc in percent.
        """
        classes = list(self.dataset_meta['classes'])
        # Moved to the CPU by mmengine, they are plain tuples.
        record = record_of([ImageCounts(*result) for result in results], classes)
        if self.out_file is not None:
            write_text_atomically(self.out_file, json.dumps({**self.facts, **record}))
        return {name: np.nan if v is None else v for name, v in record['metrics'].items()}


def record_of(images: Sequence[ImageCounts], classes: Sequence[str]) -> Dict[str, Any]:
    """Content of the file from the counts of all images; JSON values."""
    size = len(classes)
    total = np.zeros((size, size), np.int64)
    rows = []
    for image in images:
        confusion = np.zeros(size * size, np.int64)
        confusion[image.cells] = image.pixels
        confusion = confusion.reshape(size, size)
        total += confusion
        counts = dict(intersect=np.diagonal(confusion), pred=confusion.sum(0))
        counts['label'] = confusion.sum(1)
        rows.append(dict(name=image.name, **{key: v.tolist() for key, v in counts.items()}))
    return dict(classes=list(classes), **scores_of(total), images=rows)


def scores_of(confusion: np.ndarray) -> Dict[str, Any]:
    """``metrics``, ``per_class`` and ``confusion`` of a record, in percent as mmseg gives them.

    Args:
        confusion: (C, C) pixel counts, rows are the truth.
    """
    both, label = np.diagonal(confusion), confusion.sum(1)
    per_class = dict(IoU=class_iou(both, confusion.sum(0), label), Acc=100 * _ratio(both, label))
    metrics = dict(
        mIoU=mean_of(per_class['IoU']),
        aAcc=100 * _ratio(both.sum(), label.sum()),
        mAcc=mean_of(per_class['Acc']),
    )
    return dict(
        metrics={name: _json(value) for name, value in metrics.items()},
        per_class={name: [_json(value) for value in values] for name, values in per_class.items()},
        confusion=confusion.tolist(),
    )


def class_iou(intersect: np.ndarray, pred: np.ndarray, label: np.ndarray) -> np.ndarray:
    """IoU in percent from pixel counts (..., C); NaN where a class is neither true nor predicted.

    It is ``intersect / (pred + label - intersect)`` of counts that are summed over all images, as
    of PASCAL VOC and mmseg.
    """
    return 100 * _ratio(intersect, pred + label - intersect)


def mean_of(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def mean_of_known(values: Sequence[Optional[float]]) -> Optional[float]:
    """Mean of the values that are neither None nor NaN; None where there is nothing else."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _ratio(part: Any, whole: Any) -> np.ndarray:
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _flat(values: Any) -> np.ndarray:
    """Classes as (P,) integers on the CPU."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return values.reshape(-1).astype(np.int64)


def _json(value: Any) -> Optional[float]:
    return None if np.isnan(value) else float(value)
