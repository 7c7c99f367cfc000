"""Reading from image and mask files what the checks and class-aware splits need to know."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Optional, TypeVar, Union

import numpy as np
from mmengine.utils import ProgressBar
from PIL import Image

from mmdmt.files import write_text_atomically

Item = TypeVar('Item')
Result = TypeVar('Result')

_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSED = (5, 6, 7, 8)


class MaskModeError(ValueError):
    """A mask that is not one channel of whole class ids."""


@dataclass(frozen=True)
class FileFacts:
    """What was read from one file.

    Attributes:
        width (int): Pixels, as training sees them.
        height (int): Pixels, as training sees them.
        ids (tuple[int, ...], optional): Raw ids of a decoded mask, ascending; else None.
    """

    width: int
    height: int
    ids: Optional[tuple[int, ...]] = None


@dataclass(frozen=True)
class LabelRules:
    """How raw mask ids become class ids, and which of those are legal.

    Attributes:
        num_classes (int, optional): Class ids are 0 to ``num_classes - 1``; None: not known, and
            every id is legal.
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
        return [raw for raw in raw_ids if not self._is_legal(self.to_class(raw))]

    def classes(self, raw_ids: Iterable[int]) -> frozenset[int]:
        """Collect the class ids among raw ids, ignored and illegal ones left out."""
        labels = {self.to_class(raw) for raw in raw_ids} - {self.ignore_index}
        return frozenset(label for label in labels if self._is_legal(label))

    def _is_legal(self, label: int) -> bool:
        in_range = self.num_classes is None or 0 <= label < self.num_classes
        return in_range or label == self.ignore_index


def image_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """Read an image's size, turned as its EXIF orientation says (as the loader turns it).

    Args:
        path (str | Path): The image.
        decode (bool): Decode every pixel, which is what finds truncated files. False reads the
            header only. Defaults to True.

    Raises:
        Exception: Whatever Pillow raises on a file that it cannot read.
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

    Args:
        path (str | Path): The mask.
        decode (bool): Decode every pixel and collect the ids. Defaults to True.

    Raises:
        MaskModeError: If it has more than one channel, or real numbers.
        Exception: Whatever Pillow raises on a file that it cannot read.
    """
    with Image.open(path) as mask:
        if len(mask.getbands()) != 1 or mask.mode == 'F':
            raise MaskModeError(f'mode {mask.mode} is not one channel of class ids')
        ids = _unique_ids(np.asarray(mask)) if decode else None
        return FileFacts(*mask.size, ids)


def _unique_ids(pixels: np.ndarray) -> tuple[int, ...]:
    if pixels.dtype == np.uint8:  # counting is many times faster than the sort in np.unique
        return tuple(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())
    return tuple(int(label) for label in np.unique(pixels))


class FactCache:
    """Facts of files that decoded well, kept on disk for as long as size and mtime stay.

    Only sound files are kept, so a repaired file is read again and a broken one is found again.

    Args:
        path (str | Path, optional): JSON file; None keeps facts in memory only. A file that is
            not such a cache is ignored and replaced.
    """

    VERSION = 1

    def __init__(self, path: Optional[Union[str, Path]] = None) -> None:
        self.path = None if path is None else Path(path)
        self._entries = {'image': {}, 'mask': {}}
        self._changed = False
        if self.path is not None and self.path.is_file():
            self._load()

    def image(self, path: str) -> FileFacts:
        """Return :func:`image_facts` of a file, from the cache where it still holds."""
        return self._facts('image', path, image_facts)

    def mask(self, path: str) -> FileFacts:
        """Return :func:`mask_facts` of a file, from the cache where it still holds."""
        return self._facts('mask', path, mask_facts)

    def save(self) -> None:
        """Write the cache atomically, if it has a file and anything is new."""
        if self.path is not None and self._changed:
            content = {'version': self.VERSION, **self._entries}
            write_text_atomically(self.path, json.dumps(content))
            self._changed = False

    def _facts(self, kind: str, path: str, read: Callable[[str], FileFacts]) -> FileFacts:
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns]
        key = os.path.abspath(path)
        entry = self._entries[kind].get(key)
        if entry is None or entry['stamp'] != stamp:
            entry = {'stamp': stamp, **asdict(read(path))}
            self._entries[kind][key] = entry
            self._changed = True
        ids = None if entry['ids'] is None else tuple(entry['ids'])
        return FileFacts(entry['width'], entry['height'], ids)

    def _load(self) -> None:
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
        except ValueError:  # cut off or foreign: it only costs a second look at the files
            return
        if isinstance(content, dict) and content.get('version') == self.VERSION:
            self._entries = {kind: content.get(kind, {}) for kind in self._entries}


def read_class_presence(
    masks: Mapping[str, Union[str, Path]],
    rules: LabelRules,
    workers: Optional[int] = None,
    progress: bool = True,
) -> dict[str, frozenset[int]]:
    """Read which classes each image's mask shows.

    Args:
        masks (Mapping[str, str | Path]): Mask file of each id.
        rules (LabelRules): How raw ids become classes.
        workers (int, optional): Threads. Defaults to the number of cores, at most 8.
        progress (bool): Show a progress bar. Defaults to True.

    Returns:
        dict[str, frozenset[int]]: For each id its classes, without ``ignore_index``.

    Raises:
        ValueError: On a mask that cannot be read or has ids outside the classes; it names the
            file.
    """

    def classes_of(path: Union[str, Path]) -> frozenset[int]:
        try:
            ids = mask_facts(path).ids
        except Exception as error:
            raise ValueError(f'mask {path} cannot be read: {error}') from error
        illegal = rules.illegal(ids)
        if illegal:
            raise ValueError(
                f'mask {path} has ids {illegal} outside the {rules.num_classes} classes, and '
                f'ignore_index is {rules.ignore_index}: correct one of the three'
            )
        return rules.classes(ids)

    found = map_in_threads(classes_of, list(masks.values()), 'reading masks', workers, progress)
    return dict(zip(masks, found))


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: Optional[int] = None,
    progress: bool = True,
) -> list[Result]:
    """Apply a function to every item in threads, in order, with a progress bar on stderr.

    Threads suffice: Pillow decodes without holding Python's lock.

    Args:
        function (Callable): Called with one item.
        items (Sequence): What to work on.
        title (str): Printed before the bar.
        workers (int, optional): Threads. Defaults to the number of cores, at most 8.
        progress (bool): Show the bar. Defaults to True.

    Returns:
        list: One result for each item.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    # In a log file every update is a piece of text, hence few of them.
    step = max(1, len(items) // (100 if sys.stderr.isatty() else 10))
    show = progress and len(items) > 0
    pool = ThreadPoolExecutor(workers)
    try:
        if show:
            print(f'{title}: {len(items)} files, {workers} threads', file=sys.stderr, flush=True)
        bar = ProgressBar(len(items), file=sys.stderr) if show else None
        results = []
        for result in pool.map(function, items):
            results.append(result)
            if show and (len(results) % step == 0 or len(results) == len(items)):
                bar.update(len(results) - bar.completed)
        return results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # an error or Ctrl-C must not wait for all
        if show:
            print(file=sys.stderr)
