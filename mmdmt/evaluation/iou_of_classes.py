"""mIoU over some of the classes, where training has no others."""

from collections.abc import Mapping, Sequence
from typing import Any, Dict, Optional

import numpy as np
from mmseg.evaluation import IoUMetric

from mmdmt.checks import listed
from mmdmt.registry import METRICS


@METRICS.register_module()
class IoUOfClasses(IoUMetric):
    """mmseg's ``IoUMetric`` with means over classes that are named.

    Every pixel of the labels counts, as published for 16 and 13 of the 19 classes of Cityscapes: a
    pixel of a truck that is predicted as a car is an error of the car. ``aAcc`` alone is the share
    of correct pixels among those of the named classes.

    Args:
        classes (Sequence[str]): Names of the classes that are averaged and listed in the table.
        also (Mapping[str, Sequence[str]], optional): Classes of further means of the IoU by the
            name of the metric, such as ``dict(mIoU_13=[...])``.
        **kwargs: Of ``IoUMetric``.

    Raises:
        ValueError: When the metric learns the classes of the dataset, if one of these is none.
    """

    def __init__(
        self,
        classes: Sequence[str],
        also: Optional[Mapping[str, Sequence[str]]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.classes = list(classes)
        self.also = {name: list(names) for name, names in (also or {}).items()}

    @property
    def dataset_meta(self) -> Optional[dict]:
        """Meta information of the dataset that is evaluated."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        for names in (self.classes, *self.also.values()):
            unknown = [name for name in names if name not in meta['classes']]
            if unknown:
                raise ValueError(
                    f'IoUOfClasses averages over {listed(unknown)}, but the dataset has the '
                    f'classes {listed(meta["classes"])}: correct `classes` of the evaluator'
                )
        self._dataset_meta = meta

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Means over the named classes.

        Args:
            results (list[tuple]): Of each image (C,) pixels of intersection and union, predicted
                and labeled ones.
        """
        if self.format_only:
            return super().compute_metrics(results)
        whole = self._dataset_meta
        metrics = {}
        try:
            self._dataset_meta = dict(whole, classes=self.classes)
            metrics = super().compute_metrics(_only(results, whole['classes'], self.classes))
        finally:
            self._dataset_meta = whole
        for name, classes in self.also.items():
            areas = [sum(each) for each in zip(*_only(results, whole['classes'], classes))]
            found = self.total_area_to_metrics(*areas, ['mIoU'], self.nan_to_num)
            metrics[name] = np.round(np.nanmean(found['IoU']) * 100, 2)
        return metrics


def _only(results: list, known: Sequence[str], classes: Sequence[str]) -> list:
    """The areas of some classes."""
    chosen = [list(known).index(name) for name in classes]
    return [tuple(area[chosen] for area in areas) for areas in results]
