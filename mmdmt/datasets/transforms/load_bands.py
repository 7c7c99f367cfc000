"""Loads images of any number of channels and any depth."""

from collections.abc import Sequence
from typing import Optional, Tuple

import numpy as np
from mmcv.transforms import BaseTransform

from mmdmt.checks import check_count
from mmdmt.datasets.rasters import Window, raster_info, read_measured
from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Load a TIFF, ``.npy``, PNG or other image with its channels and depth as they are.

    mmseg's loaders for other than 8-bit RGB need GDAL's own Python package, which pip cannot
    install, and choose no bands. Channels keep the order of the file, colors that of RGB. 8-bit
    images stay uint8; all others become float32, which every geometric transform of mmseg handles
    in any number of channels (whole numbers beyond 2^24 are rounded).

    Args:
        bands (Sequence[int], optional): Channels to load, counted from 0, in this order. Defaults
            to all.
        window (tuple[int, int], optional): Height and width of a random window, which is all that
            is read of a TIFF or ``.npy``. For training on images that are too large to load; masks
            have to be loaded by :class:`.LoadMasks`. Defaults to the whole image.
        nodata (float, optional): Value of pixels that were not measured. Defaults to what the file
            says, if it does; NaN always counts. Where no band was measured nothing is learned.
        fill (float): What they become. Defaults to 0.

    Required keys: ``img_path``. Added keys: ``img`` (H, W, C), ``img_shape``, ``ori_shape``, and
    ``window`` (top, left, height, width) if there is one. Where no band was measured,
    ``nodata_map`` (H, W) uint8 is 1; it is there only if there are such pixels.

    Raises:
        ValueError: If a setting is out of range, or, on loading, the file lacks a band.
    """

    def __init__(
        self,
        bands: Optional[Sequence[int]] = None,
        window: Optional[Tuple[int, int]] = None,
        nodata: Optional[float] = None,
        fill: float = 0.0,
    ) -> None:
        for band in bands or ():
            check_count('LoadBands.bands', band, 0)
        for side in window or ():
            check_count('LoadBands.window', side, 1)
        if bands is not None and not bands:
            raise ValueError('`LoadBands.bands` is empty: name at least one band, or leave it out')
        self.bands = None if bands is None else list(bands)
        self.window = window
        self.nodata, self.fill = nodata, fill

    def transform(self, results: dict) -> dict:
        """Load."""
        path = results['img_path']
        info = raster_info(path)
        if self.window is not None:
            results['window'] = self._random_window(info.height, info.width)
        image, valid = read_measured(path, self.bands, results.get('window'), self.nodata)
        image = image if image.dtype == np.uint8 else image.astype(np.float32)
        if not valid.all():
            image = np.where(valid, image, np.array(self.fill, image.dtype))
        measured = valid.any(axis=-1)
        if not measured.all():  # geometric transforms take it along
            results['nodata_map'] = (~measured).astype(np.uint8)
            results.setdefault('seg_fields', []).append('nodata_map')
        results['img'] = np.ascontiguousarray(image)
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _random_window(self, height: int, width: int) -> Window:
        tall, wide = min(self.window[0], height), min(self.window[1], width)
        top, left = (int(np.random.randint(free + 1)) for free in (height - tall, width - wide))
        return top, left, tall, wide

    def __repr__(self) -> str:
        settings = ('bands', 'window', 'nodata', 'fill')
        return f'LoadBands({", ".join(f"{key}={getattr(self, key)}" for key in settings)})'
