"""Loads stored pseudo-labels in place of annotations."""

import numpy as np
from mmcv.transforms import BaseTransform

from mmdmt.pseudo.store import PseudoLabelStore
from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadPseudoLabels(BaseTransform):
    """Load label and confidence of an image from a pseudo-label store.

    Both maps are put into ``seg_fields``, so mmseg's geometric transforms carry them along with
    the image, by nearest neighbor. The label is 255 below the threshold of its class.

    Args:
        store_dir (str): Folder of a :class:`~mmdmt.pseudo.PseudoLabelStore`.

    Required keys: ``img``, ``name``. Added keys: ``gt_seg_map``, (H, W) uint8,
    ``pseudo_confidence``, (H, W) float32, and ``seg_fields``.
    """

    def __init__(self, store_dir: str) -> None:
        self.store_dir = store_dir
        self._store = PseudoLabelStore(store_dir)  # reads nothing yet: it may be filled later

    def transform(self, results: dict) -> dict:
        """Add the stored maps.

        Raises:
            KeyError: If the data info has no ``name``.
            ValueError: If the stored maps do not have the size of the image.
            PseudoLabelError: If the stored maps are missing or damaged, or the store is not
                finished. The message names the file.
        """
        if 'name' not in results:
            raise KeyError(
                'LoadPseudoLabels needs `name` in the data info; use mmdmt.UnlabeledDataset'
            )
        label, confidence = self._store.get_thresholded(results['name'])
        if 'window' in results:  # of LoadBands
            top, left, height, width = results['window']
            part = slice(top, top + height), slice(left, left + width)
            label, confidence = label[part], confidence[part]
        size = results['img'].shape[:2]
        if label.shape != size:
            raise ValueError(
                f'the pseudo-label of {results["name"]} in {self.store_dir} has the size '
                f'{label.shape}, but the image loaded has {size}; put LoadPseudoLabels right after '
                'LoadImageFromFile'
            )
        if 'nodata_map' in results:  # of LoadBands
            missing = results['nodata_map'] > 0
            label, confidence = np.where(missing, 255, label), np.where(missing, 0, confidence)
            label, confidence = label.astype(np.uint8), confidence.astype(np.float32)
        results['gt_seg_map'] = label
        # In full precision: DMT compares confidences, which differ far above 254/255.
        results['pseudo_confidence'] = confidence
        results.setdefault('seg_fields', []).extend(['gt_seg_map', 'pseudo_confidence'])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(store_dir={self.store_dir!r})'
