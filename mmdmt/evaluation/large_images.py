"""Prediction of images that are too large for the memory, GeoTIFF in and out."""

import os.path as osp
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor

from mmdmt.checks import check_choice, check_range
from mmdmt.datasets.rasters import TIFF, raster_info, raster_profile, read_raster
from mmdmt.files import atomic_path
from mmdmt.pseudo.prediction import predict_probabilities

#: How overlapping windows are blended.
BLENDS = ('linear', 'mean')
#: Class id of pixels that were not measured.
NO_CLASS = 255


def predict_large(
    model: BaseSegmentor,
    path: str,
    out_path: str,
    window: Union[int, Tuple[int, int]] = 512,
    overlap: float = 0.25,
    device: Optional[str] = None,
    *,
    blend: str = 'linear',
    load: Optional[dict] = None,
    confidence_path: Optional[str] = None,
    amp: bool = False,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Dict[str, Any]:
    """Predict an image window by window and write its classes.

    Probabilities of overlapping windows are averaged with weights that fall linearly to the edge of
    a window, where a network sees the least around a pixel. Only one window is on the device; what
    is averaged is one row of windows, on disk beside the result. Of a TIFF or ``.npy`` only windows
    are read. Images are predicted at their own size: a ``Resize`` of the test pipeline is not
    applied.

    Args:
        model: Segmentor; it is put into eval mode.
        path: Image, of any number of bands (:mod:`mmdmt.datasets.rasters`).
        out_path: Where to write the class ids (H, W), uint8: ``.tif`` with the georeference of the
            image and 255 as its nodata value, ``.npy`` or ``.png``.
        window: Height and width of a window, or both.
        overlap: Share of a window that the next one covers again, in [0, 0.9].
        device: Where to predict. Defaults to where the model is.
        blend: ``'linear'`` as above, or ``'mean'``, which weighs all pixels of a window alike.
        load: Config of the first step of the test pipeline, which says what bands are read.
            Defaults to that of ``model.cfg``, which mmseg's ``init_model`` sets; without one,
            channels are read as by ``LoadImageFromFile``.
        confidence_path: Where to write the largest probability (H, W), float32: ``.tif`` or
            ``.npy``. Defaults to nowhere.
        amp: Whether to predict in half precision.
        progress: Called with the number of finished windows and that of all.

    Returns:
        dict: ``height``, ``width``, ``windows``, and ``pixels``, a dict of counts by class id.

    Raises:
        ValueError: A setting is out of range, or the suffix of a result is none of these.
        OSError: The image cannot be read, or a result cannot be written.
    """
    check_choice('blend', blend, BLENDS)
    check_range('overlap', overlap, 0, 0.9)
    model = (model if device is None else model.to(device)).eval()
    info, reader = raster_info(path), _Reader(path, load or _first_step(model))
    sides = (window, window) if isinstance(window, int) else tuple(window)
    check_range('window', min(sides), 1)
    tall, wide = (min(pair) for pair in zip(sides, (info.height, info.width)))
    tops, lefts = (
        _starts(full, side, overlap) for full, side in ((info.height, tall), (info.width, wide))
    )
    weight = np.outer(*(_weights(side, blend) for side in (tall, wide)))
    counts, done = np.zeros(256, np.int64), 0
    with ExitStack() as stack:
        labels = stack.enter_context(_written(out_path, path, info, np.uint8))
        sure = confidence_path and stack.enter_context(
            _written(confidence_path, path, info, np.float32)
        )
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=osp.dirname(out_path) or '.'))
        strip = None
        for index, top in enumerate(tops):
            for left in lefts:
                place = top, left, tall, wide
                image, missing = reader.read(place)
                probs = _probabilities(model, image, amp)
                strip = strip or _Strip(folder, len(probs), tall, info.width)
                strip.add(left, probs, weight, missing)
                done += 1
                if progress:
                    progress(done, len(tops) * len(lefts))
            following = tops[index + 1] if index + 1 < len(tops) else info.height
            label, confidence = strip.take(following - top)
            counts += np.bincount(label.ravel(), minlength=256)
            labels(top, label)
            if sure:
                sure(top, confidence)
    pixels = {index: int(count) for index, count in enumerate(counts) if count}
    return dict(height=info.height, width=info.width, windows=done, pixels=pixels)


class _Strip:
    """Weighted sums of the probabilities of one row of windows, on disk.

    Args:
        folder: For the file.
        classes: Number of classes.
        tall: Height of a window.
        width: Of the image.
    """

    def __init__(self, folder: str, classes: int, tall: int, width: int) -> None:
        shape = classes, tall, width
        self.sums = np.memmap(osp.join(folder, 'sums'), np.float32, 'w+', shape=shape)
        self.weights = np.zeros((tall, width), np.float32)
        self.measured = np.zeros((tall, width), bool)

    def add(self, left: int, probs: np.ndarray, weight: np.ndarray, missing: np.ndarray) -> None:
        """Add a window (C, h, w) that begins at a column."""
        part = slice(left, left + probs.shape[2])
        self.sums[..., part] += probs * weight
        self.weights[:, part] += weight
        self.measured[:, part] |= ~missing

    def take(self, rows: int) -> Tuple[np.ndarray, np.ndarray]:
        """Class and confidence of the first rows, which are finished, and move on by them."""
        rows = min(rows, len(self.weights))
        probs = self.sums[:, :rows] / self.weights[:rows]
        label = probs.argmax(0).astype(np.uint8)
        label[~self.measured[:rows]] = NO_CLASS
        confidence = np.where(self.measured[:rows], probs.max(0), 0).astype(np.float32)
        for values in (*self.sums, self.weights, self.measured):
            values[:-rows] = values[rows:].copy()
            values[-rows:] = 0
        return label, confidence


class _Reader:
    """Reads windows as the first step of a pipeline loads whole images."""

    def __init__(self, path: str, load: dict) -> None:
        self.path = path
        own = str(load.get('type')).split('.')[-1] == 'LoadBands'
        self.bands = load.get('bands') if own else None
        self.flip = not own and load.get('color_type', 'color') != 'unchanged'
        nodata = load.get('nodata') if own else None
        self.nodata = raster_info(path).nodata if nodata is None else nodata
        self.fills, self.fill = own, load.get('fill', 0.0) if own else 0.0

    def read(self, window: Tuple[int, int, int, int]) -> Tuple[Tensor, np.ndarray]:
        """Image (C, h, w), and where (h, w) no band was measured."""
        image = read_raster(self.path, self.bands, window)
        missing = np.isnan(image)
        if self.nodata is not None:
            missing |= image == self.nodata
        filled = missing if self.fills else np.isnan(image)  # as the step does, or not at all
        image = np.where(filled, np.float32(self.fill), image.astype(np.float32))
        if self.flip:  # as LoadImageFromFile: three channels in BGR, no alpha
            image = image[..., [2, 1, 0]] if image.shape[2] > 2 else image[..., [0, 0, 0]]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return tensor, missing.all(axis=2)


def _first_step(model: BaseSegmentor) -> dict:
    """The step that loads images in the config that a model was made from, if it has one."""
    cfg = getattr(model, 'cfg', None) or {}
    loader = cfg.get('test_dataloader') or {}
    pipeline = (loader.get('dataset') or {}).get('pipeline') or cfg.get('test_pipeline') or [{}]
    return dict(pipeline[0])


@torch.no_grad()
def _probabilities(model: BaseSegmentor, image: Tensor, amp: bool) -> np.ndarray:
    size = tuple(image.shape[1:])
    sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size))
    (probs,) = predict_probabilities(model, dict(inputs=[image], data_samples=[sample]), amp)
    return probs.cpu().numpy()


def _starts(full: int, side: int, overlap: float) -> List[int]:
    """Where windows begin: the last one ends with the image."""
    step = max(1, round(side * (1 - overlap)))
    return [*range(0, full - side, step), full - side]


def _weights(side: int, blend: str) -> np.ndarray:
    """Weight of each pixel along a side of a window, never 0."""
    places = np.arange(side)
    rising = np.minimum(places + 1, side - places).astype(np.float32)
    return rising / rising.max() if blend == 'linear' else np.ones_like(rising)


@contextmanager
def _written(
    out_path: str, source: str, info: Any, dtype: type
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """A function that writes rows of a result; the file appears when all are written."""
    suffix = osp.splitext(out_path)[1].lower()
    shape = info.height, info.width
    suffixes = (*TIFF, '.npy', *(['.png'] if dtype is np.uint8 else []))
    if suffix not in suffixes:
        raise ValueError(f'{out_path}: this is written as one of {suffixes}, not as {suffix!r}')
    with atomic_path(out_path) as temporary:
        if suffix in TIFF:
            import rasterio

            nodata = NO_CLASS if dtype is np.uint8 else None
            profile = raster_profile(source, dtype=np.dtype(dtype).name, nodata=nodata)
            with rasterio.open(temporary, 'w', **profile) as file:

                def write(top: int, rows: np.ndarray) -> None:
                    part = rasterio.windows.Window(0, top, shape[1], len(rows))
                    file.write(rows, 1, window=part)

                yield write
            return
        with tempfile.TemporaryDirectory(dir=osp.dirname(out_path) or '.') as folder:
            file = temporary if suffix == '.npy' else osp.join(folder, 'rows')
            with open(file, 'wb') as stream:  # by its handle, so that no suffix is added
                np.lib.format.write_array_header_1_0(
                    stream,
                    dict(descr=np.dtype(dtype).str, fortran_order=False, shape=shape),
                )
                yield lambda top, rows: stream.write(np.ascontiguousarray(rows).tobytes())
            if suffix != '.npy':
                Image.fromarray(np.load(file, mmap_mode='r')).save(temporary, format='PNG')
