"""Images of any number of channels and any depth, read whole or by windows."""

import importlib
import os.path as osp
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional, Tuple

import cv2
import numpy as np

Window = Tuple[int, int, int, int]  # top, left, height, width

TIFF = ('.tif', '.tiff')


class RasterInfo(NamedTuple):
    """What is known of a file without its pixels.

    Attributes:
        height, width: Pixels.
        bands: Number of channels.
        dtype: Of the pixels.
        nodata: Value of pixels that were not measured; None if the file does not say.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype
    nodata: Optional[float] = None


def raster_info(path: str) -> RasterInfo:
    """Size, bands and type of a file, from its header where that is possible.

    Raises:
        OSError: If it cannot be read.
        ImportError: If no library that reads it is installed.
    """
    if path.lower().endswith(TIFF) and (rasterio := _optional('rasterio')):
        with _quiet(rasterio), rasterio.open(path) as file:
            types = {np.dtype(each) for each in file.dtypes}
            return RasterInfo(
                file.height, file.width, file.count, np.result_type(*types), file.nodata
            )
    pixels = _pixels(path)
    return RasterInfo(*pixels.shape, pixels.dtype)


def raster_profile(path: str, **changes: Any) -> dict:
    """Settings for rasterio of a TIFF of one band with the size and georeference of an image."""
    rasterio = importlib.import_module('rasterio')
    info = raster_info(path)
    place = {}
    if path.lower().endswith(TIFF):
        with _quiet(rasterio), rasterio.open(path) as file:
            place = dict(crs=file.crs, transform=file.transform)
    size = dict(height=info.height, width=info.width, count=1)
    tiles = dict(tiled=True, blockxsize=256, blockysize=256, compress='deflate', BIGTIFF='IF_SAFER')
    return dict(driver='GTiff', **size, **place, **tiles, **changes)


def read_raster(
    path: str, bands: Optional[Sequence[int]] = None, window: Optional[Window] = None
) -> np.ndarray:
    """Pixels (H, W, C) as they are stored, with the channels in the order of the file.

    TIFF is read by rasterio, whose windows leave the rest of the file on disk, or else by tifffile;
    ``.npy`` is (H, W) or (H, W, C) and mapped; all else is read by OpenCV, colors as RGB.

    Args:
        path: The file, on a local disk.
        bands: Channels to read, counted from 0. Defaults to all.
        window: Top, left, height and width of the part to read. Defaults to all.

    Raises:
        ValueError: If the file does not have these bands.
        OSError: If it cannot be read.
        ImportError: If no library that reads it is installed.
    """
    if path.lower().endswith(TIFF) and (rasterio := _optional('rasterio')):
        with _quiet(rasterio), rasterio.open(path) as file:
            _check_bands(path, bands, file.count)
            chosen = None if bands is None else [band + 1 for band in bands]
            top, left, height, width = window or (0, 0, file.height, file.width)
            part = rasterio.windows.Window(left, top, width, height)
            return np.moveaxis(file.read(chosen, window=part), 0, -1)
    pixels = _pixels(path)
    _check_bands(path, bands, pixels.shape[-1])
    if window is not None:
        top, left, height, width = window
        pixels = pixels[top : top + height, left : left + width]
    return np.array(pixels if bands is None else pixels[..., list(bands)])


def read_measured(
    path: str,
    bands: Optional[Sequence[int]] = None,
    window: Optional[Window] = None,
    nodata: Optional[float] = None,
) -> Tuple[np.ndarray, np.ndarray]:
    """Pixels as of :func:`read_raster`, and which of them, (H, W, C) bool, were measured.

    NaN was not, nor was ``nodata``, by default what the file says.
    """
    image = read_raster(path, bands, window)
    nodata = raster_info(path).nodata if nodata is None else nodata
    valid = np.isfinite(image) if image.dtype.kind == 'f' else np.ones(image.shape, bool)
    return image, valid if nodata is None else valid & (image != nodata)


def is_windowed(path: str) -> bool:
    """Whether windows of a file can be read without the rest of it: TIFF and ``.npy``."""
    is_tiff = path.lower().endswith(TIFF)
    return path.lower().endswith('.npy') or (is_tiff and _optional('rasterio') is not None)


def _pixels(path: str) -> np.ndarray:
    """(H, W, C) of a file, mapped where that is possible."""
    if not osp.isfile(path):
        raise FileNotFoundError(f'{path} does not exist')
    if path.lower().endswith('.npy'):
        pixels = np.load(path, mmap_mode='r', allow_pickle=False)
    elif path.lower().endswith(TIFF):
        tifffile = _optional('tifffile')
        if tifffile is None:
            raise ImportError(f'{path}: TIFF needs rasterio (pip install rasterio) or tifffile')
        pixels = tifffile.imread(path)
        if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):  # planes first
            pixels = np.moveaxis(pixels, 0, -1)
    else:
        pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise OSError(f'{path} cannot be read as an image')
        if pixels.ndim == 3 and pixels.shape[2] >= 3:
            pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in 'buif':
        raise OSError(
            f'{path} has the shape {pixels.shape} and type {pixels.dtype}: an image is (height, '
            'width) or (height, width, channels) of numbers'
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_bands(path: str, bands: Optional[Sequence[int]], count: int) -> None:
    missing = [band for band in bands or () if not 0 <= band < count]
    if missing:
        raise ValueError(f'{path} has {count} bands, counted from 0, not {missing} of `bands`')


def _optional(name: str) -> Any:
    """A module that need not be installed, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@contextmanager
def _quiet(rasterio: Any) -> Iterator[None]:
    """Ordinary images have no georeference; that is not worth a warning for each."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        yield
