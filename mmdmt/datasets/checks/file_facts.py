"""What checks and class-aware splits need to know of image and mask files."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from logging import WARNING
from pathlib import Path
from typing import Callable, Optional, TypeVar, Union

import numpy as np
from mmengine.logging import print_log
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from mmdmt.datasets.mask_values import MaskValues, pack_colors, read_mask
from mmdmt.datasets.rasters import is_windowed, raster_info, read_raster
from mmdmt.files import write_text_atomically

Item = TypeVar('Item')
Result = TypeVar('Result')

_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSED = (5, 6, 7, 8)
# What loaders turn into 8-bit RGB without clipping, scaling or guessing a profile.
_SOUND_MODES = ('1', 'L', 'P', 'RGB', 'RGBA')
_DEEP = re.compile(r"'(LA?|RGBA?);16[BLN]?'")  # Pillow would cut these channels down to 8 bits
_MAX_ASPECT = 50


class MaskModeError(ValueError):
    """A mask that is not one channel of whole class ids."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file.

    Attributes:
        width (int): Pixels; of an image, as its EXIF orientation turns it.
        height (int): The same.
        mode (str): Format and Pillow's mode, such as 'PNG RGB'; ';16' for 16 bits a channel.
        turned (bool): Whether the orientation exchanges width and height.
        ids (Sequence[int], optional): Raw ids of a decoded mask, ascending.
    """

    width: int
    height: int
    mode: str
    turned: bool = False
    ids: Optional[Sequence[int]] = None


@dataclass(frozen=True)
class ImageRules:
    """What the first step of a pipeline makes of images.

    Attributes:
        rgb (bool): Whether they become 8-bit RGB; a loader for anything else is not judged.
        oriented (bool): Whether their EXIF orientation is applied, as mmcv does by default.
        bands (Sequence[int], optional): Channels that ``LoadBands`` loads, empty for all; None: it
            is another loader.
    """

    rgb: bool = True
    oriented: bool = True
    bands: Optional[Sequence[int]] = None

    @property
    def kind(self) -> str:
        """As which kind of file :class:`FactCache` reads such images."""
        return 'image' if self.bands is None else 'bands'

    def size(self, facts: FileFacts) -> tuple[int, int]:
        """Width and height of the loaded image."""
        size = facts.width, facts.height
        return size if self.oriented or not facts.turned else size[::-1]

    def refusal(self, facts: FileFacts) -> Optional[str]:
        """Why the loader would clip or change the pixels of an image; None if it would not."""
        kind, _, mode = facts.mode.partition(' ')
        if kind == 'BANDS' and self.bands is None:
            return f'{mode} are for `mmdmt.LoadBands`' if self.rgb else None
        if kind == 'BANDS':
            missing = [band for band in self.bands or () if band >= int(mode.split()[0])]
            return f'it has {mode}, not {missing} of `LoadBands.bands`' if missing else None
        # A fourth channel of a TIFF may be anything, and loaders do not agree what to do with it.
        sound = mode in _SOUND_MODES and (kind, mode) != ('TIFF', 'RGBA')
        return None if sound or not self.rgb else f'mode {mode} is not loaded as it is'


def is_trainable_size(facts: FileFacts) -> bool:
    """Whether pipelines can resize and crop it: a side of one pixel is lost on the way."""
    short, long = sorted((facts.width, facts.height))
    return short > 1 and long <= _MAX_ASPECT * short


@dataclass(frozen=True)
class LabelRules:
    """How raw mask ids become class ids, and which of those are legal.

    Attributes:
        num_classes (int, optional): Class ids are 0 to ``num_classes - 1``; None: any id is legal.
        ignore_index (int): Id of pixels without a class. Defaults to 255.
        reduce_zero_label (bool): Raw 0 means ignored, raw 1 is class 0. Defaults to False.
        label_map (Mapping[int, int], optional): Renumbering, after ``reduce_zero_label``.
        values (MaskValues, optional): What raw ids mean, before anything else.
    """

    num_classes: Optional[int]
    ignore_index: int = 255
    reduce_zero_label: bool = False
    label_map: Optional[Mapping[int, int]] = None
    values: Optional[MaskValues] = None

    def to_class(self, raw: int) -> int:
        """Turn a raw id into a class id as ``LoadMasks`` does; -1 if ``values`` do not list it."""
        label = raw if self.values is None else self.values.ids.get(raw, -1)
        if self.reduce_zero_label:
            label = 255 if raw in (0, 255) else raw - 1
        return label if self.label_map is None else self.label_map.get(label, label)

    def illegal(self, raw_ids: Iterable[int]) -> list[int]:
        """List the raw ids that become neither a class nor ``ignore_index``.

        The loader keeps 8 bits of an id: one that needs more is illegal whatever the classes are.
        """
        legal = {*range(256 if self.num_classes is None else self.num_classes), self.ignore_index}
        fits = (lambda raw: True) if self.values else (lambda raw: 0 <= raw <= 255)
        return [raw for raw in raw_ids if not fits(raw) or self.to_class(raw) not in legal]

    @property
    def kind(self) -> str:
        """As which kind of file :class:`FactCache` reads such masks."""
        return 'color' if self.values is not None and self.values.colors else 'mask'


def image_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """Read an image's mode, and its size after its EXIF orientation is applied.

    Decoding every pixel is what finds truncated files; else only the header is read. Raises
    whatever Pillow raises on a file that it cannot read.
    """
    with Image.open(path) as image:
        mode = _mode(image)
        if decode:
            image.load()
        width, height = image.size
        # PNG keeps EXIF behind the pixels: Pillow would decode the file to get at it.
        exif = image.getexif() if decode or image.format != 'PNG' else {}
        turned = exif.get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED
    return FileFacts(*((height, width) if turned else (width, height)), mode, turned)


def bands_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """As :func:`image_facts` of an image for ``LoadBands``; large ones are decoded in strips."""
    info = raster_info(str(path))
    large = info.height * info.width * info.bands > 1 << 28
    rows = 1024 if large else info.height
    for top in range(0, info.height if decode else 0, rows):
        read_raster(str(path), None, (top, 0, min(rows, info.height - top), info.width))
    return FileFacts(info.width, info.height, f'BANDS {info.bands} bands of {info.dtype}')


def _mode(image: Image.Image) -> str:
    """Format and mode of an image that is not decoded yet; ``image.mode`` hides deep channels."""
    deep = _DEEP.search(str(image.tile)) and ';' not in image.mode
    return f'{image.format} {image.mode}{";16" if deep else ""}'


def mask_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """Read a mask's mode, size and, decoded, its raw ids (palette indices of a palette PNG).

    They are those of mmseg's ``LoadAnnotations``, which decodes with Pillow too, does not apply
    an EXIF orientation, and keeps 8 bits of each id (see :meth:`LabelRules.illegal`).

    Raises:
        MaskModeError: If it has more than one channel, or real numbers.
    """
    if is_windowed(str(path)):
        info = raster_info(str(path))
        if info.bands != 1 or info.dtype.kind == 'f':
            raise MaskModeError(
                f'{info.bands} bands of {info.dtype} are not one channel of class ids'
            )
        ids = _unique_ids(read_raster(str(path))[..., 0]) if decode else None
        return FileFacts(info.width, info.height, f'BANDS {info.dtype}', ids=ids)
    with Image.open(path) as mask:
        if len(mask.getbands()) != 1 or mask.mode == 'F':
            raise MaskModeError(f'mode {mask.mode} is not one channel of class ids')
        facts = FileFacts(*mask.size, _mode(mask))
        return replace(facts, ids=_unique_ids(np.asarray(mask))) if decode else facts


def color_facts(path: Union[str, Path], decode: bool = True) -> FileFacts:
    """As :func:`mask_facts` of a mask whose colors are its ids, as of ``pack_colors``."""
    if not decode:
        return image_facts(path, decode=False)
    colors = pack_colors(read_mask(str(path), colors=True))
    return FileFacts(colors.shape[1], colors.shape[0], 'colors', ids=np.unique(colors).tolist())


def _unique_ids(pixels: np.ndarray) -> list[int]:
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
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

    VERSION = 3
    KINDS = ('image', 'bands', 'mask', 'color')

    def __init__(self, path: Optional[Union[str, Path]] = None, decode: bool = True) -> None:
        self.path = Path(path) if path and decode else None
        self.decode = decode
        self._entries = {kind: {} for kind in self.KINDS}
        self._changed = False
        if self.path and self.path.is_file():
            self._load()

    def facts(self, kind: str, path: str) -> FileFacts:
        """Return the facts of a file read as one of ``KINDS``, kept ones where they hold."""
        read = dict(image=image_facts, bands=bands_facts, mask=mask_facts, color=color_facts)[kind]
        if not self.decode:
            return read(path, decode=False)
        status, key = os.stat(path), os.path.abspath(path)
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._entries[kind].get(key)
        if entry is None or entry['stamp'] != stamp:
            entry = self._entries[kind][key] = {'stamp': stamp, **asdict(read(path))}
            self._changed = True
        return FileFacts(**{name: value for name, value in entry.items() if name != 'stamp'})

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
    """Apply a function to every item, in order, with a progress bar where stderr is a terminal.

    Threads suffice: Pillow decodes without holding Python's lock.
    """
    return thread_map(
        function,
        items,
        max_workers=workers or min(8, os.cpu_count() or 1),
        desc=title,
        unit='file',
        disable=None if progress else True,  # None: where there is no terminal
    )


def find_copies(files: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Find files with the content of one of the others, which links have too.

    Sizes are compared first, then beginnings, and whole files only where both are alike.

    Returns:
        dict[str, str]: Such files and, for each, one of the others. Missing files are left out.
    """
    found = [dict.fromkeys(paths, ()) for paths in (files, others)]
    for fact in (_size, _digest_of_beginning, _digest):
        found = [{path: (*key, fact(path)) for path, key in half.items()} for half in found]
        shared = set(found[0].values()) & set(found[1].values()) - {(None,)}
        found = [{p: key for p, key in half.items() if key in shared} for half in found]
    by_content = {key: path for path, key in found[1].items()}
    return {path: by_content[key] for path, key in found[0].items()}


def _size(path: str) -> Optional[int]:
    try:
        return os.path.getsize(path)
    except OSError:  # missing, which is a problem of its own
        return None


def _digest_of_beginning(path: str) -> bytes:
    with open(path, 'rb') as file:
        return sha256(file.read(1 << 14)).digest()


def _digest(path: str) -> bytes:
    return sha256(Path(path).read_bytes()).digest()
