"""Loads an image as if the file had another size."""

from typing import Optional, Tuple

import mmcv
from mmcv.transforms import LoadImageFromFile

from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImageAtSize(LoadImageFromFile):
    """Load an image and resize it to one size, which counts as its original size from then on.

    With ``LoadImageFromFile`` and ``Resize``, mmseg scales the prediction back to the size of the
    file. Protocols that score at a reduced size (Cityscapes at 512x1024 in DMT) must not do that,
    and pseudo-labels that are used at this size need not be stored at another one.

    Args:
        scale (tuple[int, int]): Width and height, as in mmcv's ``Resize``. The aspect ratio is
            not kept.
        interpolation (str): As in mmcv's ``Resize``. Defaults to bilinear.
        **kwargs: Of ``LoadImageFromFile``.

    Added keys: ``img`` (H, W, 3) uint8, ``img_shape`` and ``ori_shape``, both (H, W) of ``scale``.

    Raises:
        ValueError: If ``scale`` is not two positive numbers.
    """

    def __init__(self, scale: Tuple[int, int], interpolation: str = 'bilinear', **kwargs) -> None:
        super().__init__(**kwargs)
        if len(scale) != 2 or min(scale) < 1:
            raise ValueError(f'`scale` must be (width, height) in pixels, got {scale!r}')
        self.scale = tuple(scale)
        self.interpolation = interpolation

    def transform(self, results: dict) -> Optional[dict]:
        """Load and resize."""
        results = super().transform(results)
        if results is None:  # an unreadable file with ``ignore_empty``
            return None
        results['img'] = mmcv.imresize(results['img'], self.scale, interpolation=self.interpolation)
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, interpolation={self.interpolation!r})'
