"""Packs labeled, unlabeled and pseudo-labeled samples."""

import torch
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs

from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackSemiInputs(PackSegInputs):
    """mmseg's ``PackSegInputs`` for every kind of training sample.

    A labeled sample has ``gt_sem_seg``, an unlabeled one has not. A pseudo-labeled sample
    (:class:`~mmdmt.datasets.LoadPseudoLabels`) has ``gt_sem_seg``, ``pseudo_confidence``
    (1, H, W) float32, and ``is_pseudo=True`` in its meta information. Any has ``measured``
    (1, H, W) bool if :class:`.LoadBands` found pixels that were not.

    Args:
        meta_keys (Sequence[str]): Keys that go to the meta information, where they exist.
    """

    META_KEYS = ('img_path', 'seg_map_path', 'name', 'ori_shape', 'img_shape', 'pad_shape',
                 'scale_factor', 'flip', 'flip_direction', 'reduce_zero_label')  # fmt: skip

    def __init__(self, meta_keys: tuple = META_KEYS) -> None:
        super().__init__(meta_keys=meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack.

        Args:
            results (dict): ``img`` (H, W, C) of any type, optionally ``gt_seg_map`` and
                ``pseudo_confidence`` (H, W) float32.

        Returns:
            dict: ``inputs`` (C, H, W) of the same type and ``data_samples``, a ``SegDataSample``.

        Raises:
            ValueError: If a map does not have the size of the image.
        """
        size = results['img'].shape[:2]
        for key in ('gt_seg_map', 'pseudo_confidence', 'nodata_map'):
            # A mask of another size would train on wrong labels without any other sign.
            if key in results and results[key].shape[:2] != size:
                raise ValueError(
                    f'`{key}` of {results.get("img_path")} has the size '
                    f'{results[key].shape[:2]} where the image has {size}'
                )
        packed = super().transform(results)
        if 'nodata_map' in results:
            measured = torch.from_numpy(results['nodata_map'] == 0)
            packed['data_samples'].measured = PixelData(data=measured[None])
        if 'pseudo_confidence' in results:
            confidence = torch.from_numpy(results['pseudo_confidence'].copy())
            sample = packed['data_samples']
            sample.pseudo_confidence = PixelData(data=confidence[None])
            sample.set_metainfo(dict(is_pseudo=True))
        return packed
