"""Loads masks whose values are what they are."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import mmcv
import numpy as np
from mmseg.datasets.transforms import LoadAnnotations

from mmdmt.datasets.mask_values import IGNORED, MaskValues, read_mask
from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadMasks(LoadAnnotations):
    """mmseg's ``LoadAnnotations``, for masks of any values.

    Without ``mask_values`` masks hold class ids and nothing differs, but that ``.npy`` is read too
    and that masks of images loaded by a window (:class:`.LoadBands`) are read by the same window.
    What :class:`.LoadBands` found not measured is ignored.

    Args:
        mask_values (dict | list, optional): What each value means, see
            :meth:`~mmdmt.datasets.mask_values.MaskValues.parse`; empty for class ids. A
            ``label_map`` of the dataset comes after it. Defaults to None.
        **kwargs: Of ``LoadAnnotations``.

    Required keys: ``seg_map_path``. Added keys: ``gt_seg_map`` (H, W) uint8, ``seg_fields``.
    """

    def __init__(
        self, mask_values: Optional[Union[Mapping, Sequence]] = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.mask_values = MaskValues.parse(mask_values) if mask_values else None

    def transform(self, results: dict) -> dict:
        """Load the mask, where there is one: inferencers have none."""
        if 'seg_map_path' not in results:
            return results
        results = super().transform(results)
        if 'nodata_map' in results:  # of LoadBands, perhaps resized since
            label = results['gt_seg_map']
            options = dict(interpolation='nearest', backend='cv2')
            nodata = mmcv.imresize(results['nodata_map'], label.shape[::-1], **options)
            results['gt_seg_map'] = np.where(nodata > 0, np.uint8(IGNORED), label)
        return results

    def _load_seg_map(self, results: dict) -> None:
        """Load the mask.

        Raises:
            MaskValueError: If it has a value that is not listed.
            ValueError: If the dataset has ``reduce_zero_label`` besides, or the mask is none.
        """
        path, window = results['seg_map_path'], results.get('window')
        if self.mask_values is None and window is None and not path.endswith('.npy'):
            super()._load_seg_map(results)
            return
        values = self.mask_values
        label = read_mask(path, bool(values and values.colors), window, self.backend_args)
        reduce_zero = self.reduce_zero_label or results.get('reduce_zero_label')
        if values is not None:
            if reduce_zero:
                raise ValueError(REDUCED)
            label = values.apply(label, path)
        label = label.astype('uint8')
        if reduce_zero:
            label[label == 0] = 255
            label = label - 1
            label[label == 254] = 255
        before = label.copy()
        for old, new in (results.get('label_map') or {}).items():
            label[before == old] = new
        results['gt_seg_map'] = label
        results.setdefault('seg_fields', []).append('gt_seg_map')


REDUCED = (
    '`mask_values` and `reduce_zero_label` are both set: set reduce_zero_label=False, and give the '
    'value that is not to be learned the name None in `mask_values`'
)
