"""Training and scoring at another size than that of the files."""

from typing import Optional, Tuple

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile, Pad, RandomResize

from mmdmt.datasets.transforms.load_masks import LoadMasks
from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImageAtSize(LoadImageFromFile):
    """Load an image and resize it to one size, which counts as its original size from then on.

    With ``LoadImageFromFile`` and ``Resize``, mmseg scales the prediction back to the size of the
    file. Protocols that score at a reduced size (Cityscapes at 512x1024 in DMT) must not do that,
    and pseudo-labels that are used at this size need not be stored at another one.

    Args:
        scale (tuple[int, int]): Width and height, as in mmcv's ``Resize``. The aspect ratio is
            not kept; interpolation is bilinear.
        **kwargs: Of ``LoadImageFromFile``.

    Added keys: ``img`` (H, W, 3) uint8, ``img_shape`` and ``ori_shape``, both (H, W) of ``scale``.

    Raises:
        ValueError: If ``scale`` is not two positive numbers.
    """

    def __init__(self, scale: Tuple[int, int], **kwargs) -> None:
        super().__init__(**kwargs)
        if len(scale) != 2 or min(scale) < 1:
            raise ValueError(f'`scale` must be (width, height) in pixels, got {scale!r}')
        self.scale = tuple(scale)

    def transform(self, results: dict) -> Optional[dict]:
        """Load and resize; None for an unreadable file with ``ignore_empty``."""
        results = super().transform(results)
        if results is not None:
            results['img'] = mmcv.imresize(results['img'], self.scale)
            results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale})'


@TRANSFORMS.register_module()
class LoadAnnotationsAtImageSize(LoadMasks):
    """:class:`.LoadMasks`, then nearest neighbor to the size of the image so far.

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


@TRANSFORMS.register_module()
class RandomRescale(RandomResize):
    """Scale image and labels by a random factor of their own size, with their aspect ratio.

    mmcv's ``RandomResize`` brings images to a common size first: one whose longer side is below
    500 is enlarged where ``scale=(500, 500)``. DMT scales each image as it is.

    Args:
        ratio_range (tuple[float, float]): Smallest and largest factor.
        **kwargs: Of mmcv's ``RandomResize``, which passes them to ``Resize``.
    """

    def __init__(self, ratio_range: Tuple[float, float], **kwargs) -> None:
        super().__init__(scale=(1, 1), ratio_range=tuple(ratio_range), keep_ratio=True, **kwargs)

    def transform(self, results: dict) -> dict:
        """Scale all that ``Resize`` scales."""
        height, width = results['img'].shape[:2]
        self.scale = (width, height)
        return super().transform(results)


@TRANSFORMS.register_module()
class PadToCrop(BaseTransform):
    """Pad what is smaller than the crop at the bottom and right, in black.

    The data preprocessor pads after all transforms, at the right of whatever was flipped before.
    DMT pads, then flips. Labels get 255, confidence of pseudo-labels 0. For offline methods: online
    ones learn from the preprocessor which pixels are padding.

    Args:
        size (tuple[int, int]): Height and width.
        padding (str): As of :class:`~mmdmt.models.PaddingPreprocessor`, which alone knows the mean
            color: ``'mean'`` leaves the image to it. Defaults to ``'black'``.

    Modified keys: ``img``, ``img_shape`` and all of ``seg_fields``.
    """

    def __init__(self, size: Tuple[int, int], padding: str = 'black') -> None:
        self.size = tuple(size)
        self.padding = padding

    def transform(self, results: dict) -> dict:
        """Pad."""
        if self.padding == 'black':
            shape = tuple(max(pair) for pair in zip(self.size, results['img'].shape))
            for key in ('img', *results.get('seg_fields', ())):
                value = 0 if key in ('img', 'pseudo_confidence') else 255
                results[key] = mmcv.impad(results[key], shape=shape, pad_val=value)
            results['img_shape'] = shape
        return results


@TRANSFORMS.register_module()
class PadBands(Pad):
    """mmcv's ``Pad`` for images of any number of bands: OpenCV pads at most four with a value."""

    def _pad_img(self, results: dict) -> None:
        image, parts = results['img'], []
        image = image if image.ndim == 3 else image[..., None]  # OpenCV drops a single band
        for first in range(0, image.shape[-1], 4):
            part = dict(results, img=np.ascontiguousarray(image[..., first : first + 4]))
            super()._pad_img(part)
            parts.append(part['img'].reshape(*part['img'].shape[:2], -1))
        results.update(part, img=np.concatenate(parts, axis=-1))


@TRANSFORMS.register_module()
class ScoreAtImageSize(BaseTransform):
    """Declare the size of the image so far to be its original one.

    mmseg scales predictions back to ``ori_shape``, the size of the file. Protocols that resize the
    labels together with the image (the released code of Dual Teacher on ADE20K) score at the size
    of the resized image instead: put this behind the last resizing, with the labels loaded before.

    Required keys: ``img_shape``. Modified keys: ``ori_shape``.
    """

    def transform(self, results: dict) -> dict:
        """Replace ``ori_shape``."""
        results['ori_shape'] = results['img_shape']
        return results
