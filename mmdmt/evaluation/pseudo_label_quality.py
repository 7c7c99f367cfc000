"""How accurate and how well calibrated pseudo-labels are, where there is ground truth."""

from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
from prettytable import PrettyTable
from torch import Tensor

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
        self.bins = {key: _Bins(num_bins) for key in ('all', 'kept')}

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
            self.bins[key].add(confidence[part], (label == truth)[part])

    def compute(self) -> Dict[str, Any]:
        """All statistics.

        Returns:
            dict: JSON values; shares, accuracies and IoU in [0, 1], None where there is nothing to
            take a share of.

            - ``num_images``, ``num_pixels``, ``num_true_pixels`` (with ground truth),
              ``kept_share`` (of all pixels).
            - ``accuracy``, ``miou``, ``ece``: of all pixels with ground truth. A pixel without a
              pseudo-label is wrong. Classes that neither truth nor labels show do not count for
              ``miou``. ``ece`` is the expected calibration error (Guo et al., "On calibration of
              modern neural networks", ICML 2017), of pixels with a pseudo-label.
            - ``accuracy_kept``, ``miou_kept``, ``ece_kept``: the same of kept pixels alone.
            - ``classes``: per class ``predicted_share`` and ``true_share`` (of all pixels, of
              those with truth), ``kept_share`` (of the pixels that it was predicted for),
              ``precision`` and ``precision_kept`` (of the pixels it was predicted for, those that
              are of it), ``iou`` and ``iou_kept``.
            - ``reliability``: per bin ``low``, ``high``, ``pixels``, mean ``confidence`` and
              ``accuracy``, over all pixels with ground truth.
        """
        result = dict(
            num_images=self.num_images,
            num_pixels=self.num_pixels,
            num_true_pixels=int(self.confusion.sum()),
            kept_share=_share(self.kept.sum(), self.num_pixels),
        )
        for suffix, confusion in (('', self.confusion), ('_kept', self.confusion_kept)):
            result[f'accuracy{suffix}'] = _share(np.trace(confusion), confusion.sum())
            result[f'miou{suffix}'] = _mean(_iou(confusion))
            result[f'ece{suffix}'] = self.bins[suffix.strip('_') or 'all'].error()
        return dict(result, classes=self._classes(), reliability=self.bins['all'].table())

    def _classes(self) -> List[Dict[str, Any]]:
        true, true_pixels = self.confusion.sum(1), self.confusion.sum()
        precisions = [_precision(c) for c in (self.confusion, self.confusion_kept)]
        ious = [_iou(c) for c in (self.confusion, self.confusion_kept)]
        return [
            dict(
                predicted_share=_share(self.predicted[index], self.num_pixels),
                true_share=_share(true[index], true_pixels),
                kept_share=_share(self.kept[index], self.predicted[index]),
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


class _Bins:
    """Pixels, correct pixels and summed confidence in bins (low, high] of the confidence."""

    def __init__(self, count: int) -> None:
        self.pixels = np.zeros(count, np.int64)
        self.correct = np.zeros(count, np.int64)
        self.confidence = np.zeros(count)

    def add(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        count = len(self.pixels)
        confidence = confidence.astype(np.float64)
        index = np.clip(np.ceil(confidence * count).astype(np.int64) - 1, 0, count - 1)
        self.pixels += np.bincount(index, minlength=count)
        self.correct += np.bincount(index[correct], minlength=count)
        self.confidence += np.bincount(index, confidence, minlength=count)

    def error(self) -> Optional[float]:
        """Expected calibration error: mean gap of a bin, weighted by its pixels."""
        return _share(np.abs(self.correct - self.confidence).sum(), self.pixels.sum())

    def table(self) -> List[Dict[str, Any]]:
        edges = np.linspace(0, 1, len(self.pixels) + 1)
        return [
            dict(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                pixels=int(pixels),
                confidence=_share(self.confidence[index], pixels),
                accuracy=_share(self.correct[index], pixels),
            )
            for index, pixels in enumerate(self.pixels)
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
    keys = ('predicted_share', 'kept_share')
    titles = ['class', 'labels %', 'kept %']
    if quality['num_true_pixels']:
        head += ''.join(
            f'\n{name}: accuracy {_percent(quality["accuracy" + suffix])} %, '
            f'mIoU {_percent(quality["miou" + suffix])} %, '
            f'calibration error {_percent(quality["ece" + suffix])} %'
            for name, suffix in (('all pixels ', ''), ('kept pixels', '_kept'))
        )
        keys += ('true_share', 'precision', 'precision_kept', 'iou', 'iou_kept')
        titles += ['truth %', 'correct %', 'correct of kept %', 'IoU', 'IoU of kept']
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


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _iou(confusion: np.ndarray) -> List[Optional[float]]:
    both = np.diagonal(confusion)
    union = confusion.sum(1) + confusion[:, :-1].sum(0) - both
    return [_share(*pair) for pair in zip(both, union)]


def _precision(confusion: np.ndarray) -> List[Optional[float]]:
    return [_share(*pair) for pair in zip(np.diagonal(confusion), confusion[:, :-1].sum(0))]
