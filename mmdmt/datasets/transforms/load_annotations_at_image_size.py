"""Loads a mask and resizes it to the size of the image."""

import mmcv
from mmseg.datasets.transforms import LoadAnnotations

from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadAnnotationsAtImageSize(LoadAnnotations):
    """mmseg's ``LoadAnnotations``, then nearest neighbor to the size of the image so far.

    For :class:`~mmdmt.datasets.LoadImageAtSize`: training and scoring at a reduced size.

    Required keys: ``img`` and ``seg_map_path``. Added keys: ``gt_seg_map`` (H, W) uint8 of the
    size of ``img``, and ``seg_fields``.
    """

    def transform(self, results: dict) -> dict:
        """Load and resize.

        Raises:
            KeyError: If no image was loaded before.
        """
        if 'img' not in results:
            raise KeyError('LoadAnnotationsAtImageSize needs `img`: load the image first')
        results = super().transform(results)
        height, width = results['img'].shape[:2]
        results['gt_seg_map'] = mmcv.imresize(
            results['gt_seg_map'], (width, height), interpolation='nearest', backend='cv2'
        )
        return results
