"""How accurate and how well calibrated pseudo-labels are, where there is ground truth."""

from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from prettytable import PrettyTable
from torch import Tensor

from mmdmt.evaluation.calibration import confidence_histogram, expected_calibration_error
from mmdmt.evaluation.record_metric import class_iou, mean_of_known

Map = Union[np.ndarray, Tensor]


class PseudoLabelQuality:
    """Counts over images, from which shares, accuracies, IoU and calibration are computed.

    Every statistic is a sum over pixels: images can be added in any order, and nothing grows with
    their number.

    Args:
        num_classes: Number of classes C.
        num_bins: Bins of equal width of the confidence, for calibration. Defaults to 15, as is
            usual for the expected calibration error.
        ignore_index: Label of pixels without a class. Defaults to 255.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, num_classes: int, num_bins: int = 15, ignore_index: int = 255) -> None:
        if num_classes < 1 or num_bins < 1:
            raise ValueError(
                f'`num_classes` and `num_bins` must be positive, got {num_classes} and {num_bins}'
            )
        self.num_classes = num_classes
        self.num_bins = num_bins
        self.ignore_index = ignore_index
        self.num_images = 0
        self.num_pixels = 0
        self.predicted = np.zeros(num_classes, np.int64)
        self.kept = np.zeros(num_classes, np.int64)
        # Rows: true class. Columns: pseudo-label; the last one for pixels without any.
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)
        self.confusion_kept = np.zeros((num_classes, num_classes + 1), np.int64)
        # Of the pixels that each class was predicted for.
        self.bins = {
            key: torch.zeros(num_classes, num_bins, 3, dtype=torch.float64)
            for key in ('all', 'kept')
        }

    def update(
        self, label: Map, confidence: Map, kept: Map, ground_truth: Optional[Map] = None
    ) -> None:
        """Add an image; without ground truth it counts for the shares alone.

        Args:
            label: (H, W) pseudo-labels before any threshold, ``ignore_index`` where there are none.
            confidence: (H, W) in [0, 1].
            kept: (H, W) bool, pixels that training uses.
            ground_truth: (H, W) true classes; ``ignore_index`` where unknown.

        Raises:
            ValueError: If the shapes differ, or a label is neither a class nor ``ignore_index``.
        """
        label, confidence, kept = (_numpy(values) for values in (label, confidence, kept))
        self._check_shapes(label, confidence=confidence, kept=kept)
        has_label = self._known(label, 'label')
        kept = kept.astype(bool) & has_label
        self.num_images += 1
        self.num_pixels += label.size
        self.predicted += self._count(label[has_label])
        self.kept += self._count(label[kept])
        if ground_truth is None:
            return
        truth = _numpy(ground_truth)
        self._check_shapes(label, ground_truth=truth)
        is_true = self._known(truth, 'ground_truth')
        column = np.where(has_label, label, self.num_classes)
        for key, confusion, part in (
            ('all', self.confusion, is_true),
            ('kept', self.confusion_kept, is_true & kept),
        ):
            confusion += self._cross(truth[part], column[part])
            part = part & has_label
            self.bins[key] += confidence_histogram(
                torch.from_numpy(confidence[part].astype(np.float64)),
                torch.from_numpy((label == truth)[part]),
                self.num_bins,
                torch.from_numpy(label[part].astype(np.int64)),
                self.num_classes,
            )

    def compute(self) -> Dict[str, Any]:
        """All statistics, under these names.

        - ``num_images``, ``num_pixels``, ``num_true_pixels`` (with ground truth),
          ``kept_share`` (of all pixels).
        - ``accuracy``, ``miou``, ``ece``: of all pixels with ground truth. A pixel without a
          pseudo-label is wrong. Classes that neither truth nor labels show do not count for
          ``miou``. ``ece`` is the expected calibration error (Guo et al., "On calibration of
          modern neural networks", ICML 2017), of pixels with a pseudo-label.
        - ``accuracy_kept``, ``miou_kept``, ``ece_kept``: the same of kept pixels alone.
        - ``classes``: per class ``predicted_share`` and ``true_share`` (of all pixels, of
          those with truth), ``kept_share`` (of the pixels that it was predicted for),
          ``share_of_kept`` (of the pixels that are kept: what training sees of the class, to
          be compared with its ``true_share``), ``ece`` and ``ece_kept``, ``precision`` and
          ``precision_kept`` (of the pixels it was predicted for, those that are of it), ``iou``
          and ``iou_kept``.
        - ``reliability``: per bin ``low``, ``high``, ``pixels``, mean ``confidence`` and
          ``accuracy``, over all pixels with ground truth.

        Returns:
            dict: JSON values; shares, accuracies and IoU in [0, 1], None where there is nothing to
                take a share of.
        """
        result = dict(
            num_images=self.num_images,
            num_pixels=self.num_pixels,
            num_true_pixels=int(self.confusion.sum()),
            kept_share=_share(self.kept.sum(), self.num_pixels),
        )
        for suffix, confusion in (('', self.confusion), ('_kept', self.confusion_kept)):
            result[f'accuracy{suffix}'] = _share(np.trace(confusion), confusion.sum())
            result[f'miou{suffix}'] = mean_of_known(_iou(confusion))
            result[f'ece{suffix}'] = _error(self.bins[suffix.strip('_') or 'all'].sum(0))
        return dict(result, classes=self._classes(), reliability=_bin_rows(self.bins['all'].sum(0)))

    def _classes(self) -> List[Dict[str, Any]]:
        true, true_pixels = self.confusion.sum(1), self.confusion.sum()
        precisions = [_precision(c) for c in (self.confusion, self.confusion_kept)]
        ious = [_iou(c) for c in (self.confusion, self.confusion_kept)]
        return [
            dict(
                predicted_share=_share(self.predicted[index], self.num_pixels),
                true_share=_share(true[index], true_pixels),
                kept_share=_share(self.kept[index], self.predicted[index]),
                share_of_kept=_share(self.kept[index], self.kept.sum()),
                ece=_error(self.bins['all'][index]),
                ece_kept=_error(self.bins['kept'][index]),
                precision=precisions[0][index],
                precision_kept=precisions[1][index],
                iou=ious[0][index],
                iou_kept=ious[1][index],
            )
            for index in range(self.num_classes)
        ]

    def _known(self, values: np.ndarray, name: str) -> np.ndarray:
        """Where a map has a class."""
        is_class = (values >= 0) & (values < self.num_classes)
        wrong = ~is_class & (values != self.ignore_index)
        if wrong.any():
            raise ValueError(
                f'`{name}` has the value {values[wrong][0]}, which is neither one of '
                f'{self.num_classes} classes nor {self.ignore_index}'
            )
        return is_class

    def _check_shapes(self, label: np.ndarray, **maps: np.ndarray) -> None:
        for name, values in maps.items():
            if values.shape != label.shape:
                raise ValueError(f'`{name}` is {values.shape} where `label` is {label.shape}')

    def _count(self, classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes.astype(np.int64), minlength=self.num_classes)

    def _cross(self, truth: np.ndarray, column: np.ndarray) -> np.ndarray:
        flat = truth.astype(np.int64) * (self.num_classes + 1) + column
        return np.bincount(flat, minlength=self.confusion.size).reshape(self.confusion.shape)


def _bin_rows(hist: Tensor) -> List[Dict[str, Any]]:
    """A histogram (bins, 3) of confidence, bin by bin."""
    edges = np.linspace(0, 1, len(hist) + 1).tolist()
    return [
        dict(
            low=low,
            high=high,
            pixels=int(pixels),
            confidence=_share(confidence, pixels),
            accuracy=_share(correct, pixels),
        )
        for low, high, (pixels, confidence, correct) in zip(edges, edges[1:], hist.tolist())
    ]


def quality_table(quality: Dict[str, Any], classes: Sequence[str]) -> str:
    """The statistics as plain text.

    Args:
        quality: Of :meth:`PseudoLabelQuality.compute`.
        classes: Class names.

    Returns:
        Lines: a summary, a table of the classes, and one of the calibration.
    """
    head = f'{quality["num_images"]} images, {_percent(quality["kept_share"])} % of the pixels kept'
    keys = ('predicted_share', 'kept_share', 'share_of_kept')
    titles = ['class', 'labels %', 'kept %', 'of all kept %']
    if quality['num_true_pixels']:
        head += ''.join(
            f'\n{name}: accuracy {_percent(quality["accuracy" + suffix])} %, '
            f'mIoU {_percent(quality["miou" + suffix])} %, '
            f'calibration error {_percent(quality["ece" + suffix])} %'
            for name, suffix in (('all pixels ', ''), ('kept pixels', '_kept'))
        )
        keys += ('true_share', 'precision', 'precision_kept', 'ece', 'ece_kept')
        keys += ('iou', 'iou_kept')
        titles += ['truth %', 'correct %', 'correct of kept %', 'ECE %', 'ECE of kept %']
        titles += ['IoU', 'IoU of kept']
    rows = [
        [name, *(_percent(values[key]) for key in keys)]
        for name, values in zip(classes, quality['classes'])
    ]
    parts = [head, _text_table(titles, rows)]
    if quality['num_true_pixels']:
        rows = [
            [f'{row["low"]:.2f} - {row["high"]:.2f}', str(row['pixels'])]
            + [_percent(row[key]) for key in ('confidence', 'accuracy')]
            for row in quality['reliability']
        ]
        parts.append(_text_table(['confidence', 'pixels', 'mean %', 'correct %'], rows))
    return '\n\n'.join(parts)


def rounds_table(qualities: Dict[str, Dict[str, Any]], classes: Sequence[str]) -> str:
    """How the labels of a chain change from stage to stage.

    Args:
        qualities: Of :meth:`PseudoLabelQuality.compute` by the name of the stage.
        classes: Class names.

    Returns:
        Lines: one table with a row for each stage, and where there is truth one for the share of
        each class among the kept pixels, its precision and its calibration error there, with a
        column for each stage.
    """
    keys = dict(kept_share='kept %', accuracy='correct %', accuracy_kept='correct of kept %')
    keys.update(miou='mIoU', miou_kept='mIoU of kept', ece='ECE %', ece_kept='ECE of kept %')
    rows = [
        [stage, str(found['num_images']), *(_percent(found[key]) for key in keys)]
        for stage, found in qualities.items()
    ]
    parts = [_text_table(['stage', 'images', *keys.values()], rows)]
    known = [found for found in qualities.values() if found['num_true_pixels']]
    tables = dict(share_of_kept='share of kept, %', precision_kept='correct of kept, %')
    tables['ece_kept'] = 'ECE of kept, %'
    for key, title in tables.items() if known else ():
        rows = [
            [name, *(_percent(found['classes'][index][key]) for found in qualities.values())]
            for index, name in enumerate(classes)
        ]
        titles = [title, *qualities]
        if key == 'share_of_kept':
            titles.append('truth')
            for row, of_class in zip(rows, known[-1]['classes']):
                row.append(_percent(of_class['true_share']))
        parts.append(_text_table(titles, rows))
    return '\n\n'.join(parts)


def _text_table(titles: List[str], rows: List[List[str]]) -> str:
    table = PrettyTable(titles, align='r')
    table.align[titles[0]] = 'l'
    table.add_rows(rows)
    return table.get_string()


def _percent(share: Optional[float]) -> str:
    return '-' if share is None else f'{100 * share:.2f}'


def _numpy(values: Map) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.float() if values.is_floating_point() else values  # numpy has no bfloat16
        return values.detach().cpu().numpy()
    return np.asarray(values)


def _share(part: float, whole: float) -> Optional[float]:
    return float(part) / float(whole) if whole else None


def _error(hist: Tensor) -> Optional[float]:
    value = float(expected_calibration_error(hist))
    return None if np.isnan(value) else value


def _iou(confusion: np.ndarray) -> List[Optional[float]]:
    found = class_iou(np.diagonal(confusion), confusion[:, :-1].sum(0), confusion.sum(1))
    return [None if np.isnan(value) else float(value) / 100 for value in found]


def _precision(confusion: np.ndarray) -> List[Optional[float]]:
    return [_share(*pair) for pair in zip(np.diagonal(confusion), confusion[:, :-1].sum(0))]
