"""What checks and class-aware splits need to know of image and mask files."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import WARNING
from pathlib import Path
from typing import Callable, Optional, TypeVar, Union

import numpy as np
from mmengine.logging import print_log
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from mmdmt.files import write_text_atomically

Item = TypeVar('Item')
Result = TypeVar('Result')

_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSED = (5, 6, 7, 8)


class MaskModeError(ValueError):
    """A mask that is not one channel of whole class ids."""


@dataclass(frozen=True)
class FileFacts:
    """Size in pixels as training sees it, and raw ids of a decoded mask, ascending."""

    width: int
    height: int
    ids: Optional[Sequence[int]] = None


@dataclass(frozen=True)
class LabelRules:
    """How raw mask ids become class ids, and which of those are legal.

    Attributes:
        num_classes (int, optional): Class ids are 0 to ``num_classes - 1``; None: any id is legal.
        ignore_index (int): Id of pixels without a class. Defaults to 255.
        reduce_zero_label (bool): Raw 0 means ignored, raw 1 is class 0. Defaults to False.
        label_map (Mapping[int, int], optional): Renumbering, after ``reduce_zero_label``.
    """

    num_classes: Optional[int]
    ignore_index: int = 255
    reduce_zero_label: bool = False
    label_map: Optional[Mapping[int, int]] = None

    def to_class(self, raw: int) -> int:
        """Turn a raw id into a class id the way mmseg's ``LoadAnnotations`` does."""
        label = raw
        if self.reduce_zero_label and raw <= 255:
            label = 255 if raw in (0, 255) else raw - 1
        return label if self.label_map is None else self.label_map.get(label, label)

    def illegal(self, raw_ids: Iterable[int]) -> list[int]:
        """List the raw ids that become neither a class nor ``ignore_index``."""
        if self.num_classes is None:
            return []
        legal = {*range(self.num_classes), self.ignore_index}
        return [raw for raw in raw_ids if self.to_class(raw) not in legal]


def image_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """Read an image's size after its EXIF orientation is applied, as the loader does.

    Decoding every pixel is what finds truncated files; else only the header is read. Raises
    whatever Pillow raises on a file that it cannot read.
    """
    with Image.open(path) as image:
        if decode:
            image.load()
        width, height = image.size
        # PNG keeps EXIF behind the pixels: Pillow would decode the file to get at it.
        exif = image.getexif() if decode or image.format != 'PNG' else {}
        if exif.get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED:
            width, height = height, width
    return FileFacts(width, height)


def mask_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """Read a mask's size and, decoded, its raw ids (palette indices of a palette PNG).

    Raises:
        MaskModeError: If it has more than one channel, or real numbers.
    """
    with Image.open(path) as mask:
        if len(mask.getbands()) != 1 or mask.mode == 'F':
            raise MaskModeError(f'mode {mask.mode} is not one channel of class ids')
        ids = _unique_ids(np.asarray(mask)) if decode else None
        return FileFacts(*mask.size, ids)


def _unique_ids(pixels: np.ndarray) -> list[int]:
    if pixels.dtype == np.uint8:  # counting is many times faster than the sort in np.unique
        return np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
    return np.unique(pixels).tolist()


class FactCache:
    """Facts of files that decoded well, kept on disk for as long as size and mtime stay.

    Only sound files are kept, so a repaired file is read again and a broken one is found again.

    Args:
        path (str | Path, optional): JSON file; None keeps facts in memory only. A file that is
            not such a cache is ignored and replaced.
        decode (bool): False reads headers only, and keeps nothing. Defaults to True.
    """

    VERSION = 1

    def __init__(self, path: Optional[Union[str, Path]] = None, decode: bool = True) -> None:
        self.path = Path(path) if path and decode else None
        self.decode = decode
        self._entries = {'image': {}, 'mask': {}}
        self._changed = False
        if self.path and self.path.is_file():
            self._load()

    def facts(self, kind: str, path: str) -> FileFacts:
        """Return the facts of an ``'image'`` or a ``'mask'``, kept ones where they still hold."""
        read = image_facts if kind == 'image' else mask_facts
        if not self.decode:
            return read(path, decode=False)
        status, key = os.stat(path), os.path.abspath(path)
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._entries[kind].get(key)
        if entry is None or entry['stamp'] != stamp:
            entry = self._entries[kind][key] = {'stamp': stamp, **asdict(read(path))}
            self._changed = True
        return FileFacts(entry['width'], entry['height'], entry['ids'])

    def save(self) -> None:
        """Write the cache atomically, if it has a file and anything is new.

        A folder that cannot be written to is a warning: the files were checked all the same.
        """
        if self.path and self._changed:
            content = {'version': self.VERSION, **self._entries}
            try:
                write_text_atomically(self.path, json.dumps(content))
            except OSError as error:
                note = f'the files that were checked are not remembered for the next time: {error}'
                print_log(f'{note} (`default_hooks.dataset_check.cache`)', 'current', WARNING)
            self._changed = False

    def _load(self) -> None:
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
        except ValueError:  # cut off or foreign: it only costs a second look at the files
            return
        if isinstance(content, dict) and content.get('version') == self.VERSION:
            self._entries = {kind: content.get(kind, {}) for kind in self._entries}


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: Optional[int] = None,
    progress: bool = True,
) -> list[Result]:
    """Apply a function to every item, in order, with a progress bar on stderr.

    Threads suffice: Pillow decodes without holding Python's lock.
    """
    return thread_map(
        function,
        items,
        max_workers=workers or min(8, os.cpu_count() or 1),
        desc=title,
        unit='file',
        disable=not progress,
        # In a log file every update is a piece of text, hence few of them.
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
