"""What the pixel values of masks mean: numbers or colors as they are, mapped to class ids."""

import io
import os.path as osp
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np
from mmengine import fileio
from PIL import Image

from mmdmt.checks import listed
from mmdmt.datasets.rasters import Window, is_windowed, read_raster

IGNORED = 255  # class id of pixels that are not learned


class MaskValueError(ValueError):
    """A mask has a value that ``mask_values`` does not list."""


def pack_colors(pixels: np.ndarray) -> np.ndarray:
    """One number for each color: (..., 3) uint8 becomes (...) int32, 0xRRGGBB."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue


def unpack_color(packed: Any) -> Tuple[Any, Any, Any]:
    """Red, green and blue of numbers of :func:`pack_colors`."""
    return packed >> 16, packed >> 8 & 255, packed & 255


@dataclass(frozen=True)
class MaskValues:
    """What each value of a mask means.

    Attributes:
        ids (Mapping[int, int]): Class id by value, colors as of :func:`pack_colors`.
        names (tuple[str, ...]): Class names in the order of their ids; empty if none are given.
        colors (bool): Whether values are colors.
    """

    ids: Mapping[int, int]
    names: Tuple[str, ...]
    colors: bool

    @classmethod
    def parse(cls, given: Union[Mapping, Sequence]) -> 'MaskValues':
        """Read the setting ``mask_values``.

        Args:
            given: ``{0: 'background', 255: 'polyp', 77: None}``: the name of each value, in the
                order of the classes; several values may have one name, and None is not learned.
                Or ``[0, 255]``: the value of each class. A color is ``(red, green, blue)``.

        Raises:
            ValueError: If a value is no number or color, is there twice, or both kinds are mixed.
        """
        if not isinstance(given, Mapping):
            given = list(given) if isinstance(given, (list, tuple)) else [given]
            pairs = [(value, index) for index, value in enumerate(given)]
            names: Tuple[str, ...] = ()
        else:
            names = tuple(dict.fromkeys(name for name in given.values() if name is not None))
            places = {name: index for index, name in enumerate(names)}
            pairs = [(v, IGNORED if name is None else places[name]) for v, name in given.items()]
        keys = [_number_of(value) for value, _ in pairs]
        kinds = {is_color for _, is_color in keys}
        numbers = [number for number, _ in keys]
        if len(kinds) != 1 or len(set(numbers)) < len(numbers):
            raise ValueError(
                f'`mask_values` must be different numbers, or different colors, got {given!r}'
            )
        if len(names or numbers) > IGNORED:
            raise ValueError(f'`mask_values` has {len(names or numbers)} classes, at most 255 fit')
        ids = dict(zip(numbers, (index for _, index in pairs)))
        return cls(ids, names, kinds.pop())

    def shown(self, number: int) -> str:
        """A value as it is written in ``mask_values``."""
        return str(unpack_color(number) if self.colors else number)

    def apply(self, mask: np.ndarray, path: str) -> np.ndarray:
        """Class ids (H, W) uint8 of a mask, (H, W) or with colors (H, W, 3).

        JPEG blurs values: in such a file each is taken for the nearest one that is listed.

        Raises:
            MaskValueError: If it has a value that is not listed; the message names it and ``path``.
        """
        values = pack_colors(mask) if self.colors else mask
        known = np.array(sorted(self.ids))
        if is_lossy(path):
            values = self._nearest(known, values)
        index = np.searchsorted(known, values).clip(max=len(known) - 1)
        unknown = known[index] != values
        if unknown.any():
            found = [self.shown(int(value)) for value in np.unique(values[unknown])[:8]]
            raise MaskValueError(
                f'{path} has {int(unknown.sum())} pixels of values that `mask_values` does not '
                f'list: {listed(found)}. Add each with the name of its class, or None if it is '
                'not to be learned'
            )
        return np.array([self.ids[int(value)] for value in known], np.uint8)[index]

    def _nearest(self, known: np.ndarray, values: np.ndarray) -> np.ndarray:
        found, places = np.unique(values, return_inverse=True)
        points = [np.array(unpack_color(v) if self.colors else v[None]) for v in (known, found)]
        distance = np.abs(points[0][:, :, None].astype(int) - points[1][:, None].astype(int)).sum(0)
        return known[distance.argmin(axis=0)][places.reshape(values.shape)]


def is_lossy(path: str) -> bool:
    """Whether a file is of a kind that does not keep values."""
    return path.lower().endswith(('.jpg', '.jpeg'))


def read_mask(
    path: str,
    colors: bool = False,
    window: Optional[Window] = None,
    backend_args: Optional[dict] = None,
) -> np.ndarray:
    """Pixels of a mask file as they are stored: (H, W) numbers, or (H, W, 3) uint8 ``colors``.

    Args:
        path: PNG, TIFF or any other image, or ``.npy``. Palette images give indices, or colors.
        colors: Whether to give colors.
        window: Top, left, height and width of the part to read.
        backend_args: Of mmengine's file backend.

    Raises:
        ValueError: If the mask has several channels and no colors are wanted.
    """
    mask = _read_window(path, colors, window)
    if mask is None:
        data = io.BytesIO(fileio.get(path, backend_args=backend_args))
        with Image.open(data) as image:
            mask = np.asarray(image.convert('RGB') if colors else image)
    elif window is not None:
        window = None
    if mask.ndim > 2 and not colors:
        raise ValueError(f'{path} has {mask.shape[2]} channels: list its colors, {SYNTAX}')
    mask = mask.astype(np.uint8) if mask.dtype == bool else mask
    if window is not None:
        top, left, height, width = window
        mask = mask[top : top + height, left : left + width]
    return mask


def _read_window(path: str, colors: bool, window: Optional[Window]) -> Optional[np.ndarray]:
    """A mask of a kind of which windows can be read; None if it is of another, or a palette."""
    if not is_windowed(path) or not osp.isfile(path):
        return None
    mask = read_raster(path, None, window)
    if colors:
        return mask[..., :3] if mask.shape[2] >= 3 else None
    return mask[..., 0] if mask.shape[2] == 1 else mask


SYNTAX = '`mask_values = [[0, 0, 0], [255, 0, 0]]`, in the order of the classes'


def proposed_values(found: Iterable[int], colors: bool, classes: Sequence[str]) -> Optional[str]:
    """The line for a config that would name the values found; None if they fit no classes."""
    values = sorted(found)
    rest = [value for value in values if colors or value != IGNORED]
    names: Dict[int, Optional[str]]
    if classes and len(values) == len(classes):
        names = dict(zip(values, classes))
    elif classes and len(rest) == len(classes):
        names = {**dict(zip(rest, classes)), IGNORED: None}
    elif 1 < len(values) <= 64 and not classes:
        names = {value: f'class {index}' for index, value in enumerate(values)}
    else:
        return None
    keys: Any = {unpack_color(v) if colors else v: name for v, name in names.items()}
    return f'mask_values = {keys}'


def _number_of(value: Any) -> Tuple[int, bool]:
    """A value as a number, and whether it is a color; strings are what JSON makes of keys."""
    parts = value.strip('()[] ').split(',') if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    try:
        parts = [] if any(int(part) != float(part) for part in parts) else list(map(int, parts))
    except (TypeError, ValueError):
        parts = []
    color = len(parts) == 3
    if len(parts) not in (1, 3) or (color and not all(0 <= part <= 255 for part in parts)):
        raise ValueError(
            f'`mask_values` has {value!r}: a value is a whole number or a color (red, green, blue)'
        )
    return (parts[0] << 16 | parts[1] << 8 | parts[2]) if color else parts[0], color
