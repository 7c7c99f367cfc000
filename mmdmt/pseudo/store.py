"""Pseudo-labels on disk: complete, or not used."""

import json
import logging
import math
import os
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

from mmdmt.files import atomic_path, remove_stale_temporaries, write_text_atomically
from mmdmt.pseudo.codec import (
    FORMAT_VERSION,
    DamagedMapError,
    PseudoLabelError,
    decode_map,
    encode_map,
)
from mmdmt.pseudo.thresholds import apply_thresholds

Thresholds = Union[Tensor, np.ndarray, Sequence[float]]

#: Settings of a store that may change without labeling again: maps are stored unthresholded.
THRESHOLD_KEYS = ('ratio', 'pixel_stride', 'bins', 'balance', 'threshold')

# Sums of confidences are kept in whole steps, so that their order cannot matter.
_CONFIDENCE_STEPS = 1 << 16

# What a manifest has besides the meta.
_RESULT_KEYS = {
    'format_version',
    'thresholds',
    'num_images',
    'num_pixels',
    'kept_share',
    'mean_confidence',
    'predicted_pixels',
    'kept_pixels',
    'class_confidence',
    'files',
}

_SUFFIX = '.plc'  # pseudo-label and confidence
_MAX_NAMES_IN_ERRORS = 5


class StoreIncompleteError(PseudoLabelError):
    """Maps that are needed are not there.

    Attributes:
        names: The images that have no map, or a damaged one.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = list(names)


class StoreMismatchError(PseudoLabelError):
    """A store holds maps of another network or another set of classes."""


@dataclass
class PseudoLabelStats:
    """What a store keeps, over some of its images.

    Attributes:
        predicted: (C,) pixels per predicted class.
        kept: (C,) those of them that reach the threshold.
        confidence: (C,) sum of the confidences of the predicted pixels, in steps of 2^-16.
        files: Per image ``bytes`` and ``crc32`` of its file, and the sum of its confidences.
    """

    predicted: np.ndarray
    kept: np.ndarray
    confidence: np.ndarray
    files: Dict[str, Dict[str, Any]] = field(default_factory=dict)

    def merge(self, other: 'PseudoLabelStats') -> None:
        """Add the images of another object, say of another rank."""
        self.predicted = self.predicted + other.predicted
        self.kept = self.kept + other.kept
        self.confidence = self.confidence + other.confidence
        self.files.update(other.files)


class PseudoLabelStore:
    """Folder with one compact map of classes and confidences per unlabeled image.

    Writing: :meth:`begin` (one process, before the others write), :meth:`put` per image (ranks
    write different images at the same time), :meth:`finish` (one process, after all have
    written). Each file is complete or absent whenever the process is killed, so a pass that was
    cut off goes on with :meth:`missing`. Only :meth:`finish` makes the manifest, and without a
    manifest the store is not used.

    Stored confidences are quantized (see :mod:`mmdmt.pseudo.codec`). Compute thresholds from what
    :meth:`get` returns, not from what was put: then they do not depend on where a pass was cut
    off. Thresholds are applied when maps are read, so that another ratio needs no new labels.

    What is checked when: each map has a checksum of its content, which every read verifies. The
    manifest has another one of each whole file, by which :meth:`missing`, :meth:`begin` and
    :meth:`get_thresholded` find maps of a finished store that were exchanged or altered. A
    damaged manifest is none, so the store counts as not finished. A lost or damaged
    ``meta.json`` is restored from the manifest; without either, maps are refused.

    Layout: ``meta.json``, ``maps/<name>.plc``, ``manifest.json``.

    Args:
        root: Folder of the store. It need not exist.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(root)
        self._maps = self.root / 'maps'
        self._meta_path = self.root / 'meta.json'
        self._manifest_path = self.root / 'manifest.json'
        self._num_classes: Optional[int] = None
        self._finished: Optional[_Finished] = None

    # ------------------------------------------------------------------ state

    @property
    def is_complete(self) -> bool:
        """Whether :meth:`finish` was reached and its manifest is not damaged."""
        return self._read_manifest() is not None

    @property
    def manifest(self) -> Dict[str, Any]:
        """What is in the store, read from disk; see :meth:`finish`.

        Raises:
            StoreIncompleteError: If the store was not finished, or the manifest is damaged.
            StoreMismatchError: If it was written in another format.
        """
        manifest = self._read_manifest()
        if manifest is None:
            found = 'is damaged' if self._manifest_path.exists() else 'is not there'
            raise StoreIncompleteError(
                f'{self._manifest_path} {found}: labeling was not finished. Run the stage that '
                'makes these pseudo-labels again; it goes on where it was'
            )
        if manifest['format_version'] != FORMAT_VERSION:
            raise StoreMismatchError(
                f'{self._manifest_path} has format version {manifest["format_version"]}, this '
                f'mmdmt reads {FORMAT_VERSION}: label again in an empty folder'
            )
        return manifest

    def has(self, name: str) -> bool:
        """Whether an image has a complete, undamaged map; see :meth:`missing`."""
        return not self.missing([name])

    def missing(self, names: Iterable[str]) -> List[str]:
        """Those of ``names`` that have no map, or a damaged one, of which a warning is logged.

        Every file is read whole. Where there is a manifest, its checksum is that of the manifest,
        so that also a sound map of another image is found; otherwise the map is decoded.
        """
        checksums = self._checksums()
        absent, damaged = [], []
        for name in names:
            try:
                self._verify(name, checksums.get(name))
            except StoreIncompleteError:
                absent.append(name)
            except DamagedMapError:
                absent.append(name)
                damaged.append(name)
        if damaged:
            print_log(
                f'{len(damaged)} pseudo-label(s) in {self.root} are damaged and count as missing: '
                f'{_enumerate(damaged)}',
                logger='current',
                level=logging.WARNING,
            )
        return absent

    # ---------------------------------------------------------------- writing

    def begin(self, meta: Dict[str, Any], restart: bool = False) -> None:
        """Open the store for writing; call it in one process before any of them writes.

        A store begun with the same ``meta`` is continued, finished or not. Where only a key of
        ``THRESHOLD_KEYS`` differs, its maps are kept, but those that are not what the manifest
        says, and the manifest is dropped.

        Args:
            meta: What identifies the labels, JSON values: ``num_classes`` and whatever else says
                where they come from, such as ``checkpoint``, ``ratio``, ``classes``.
            restart: Whether to discard maps of another network instead of refusing.

        Raises:
            ValueError: If ``meta['num_classes']`` is not in 1..255.
            StoreMismatchError: If the store holds maps of another ``meta``, or of nobody knows
                which, because ``meta.json`` and the manifest are lost or damaged.
        """
        num_classes = meta.get('num_classes')
        if not isinstance(num_classes, int) or not 1 <= num_classes <= 255:
            raise ValueError(f'`num_classes` must be in 1..255 (uint8), got {num_classes!r}')
        meta = json.loads(json.dumps(meta))
        stored = _read_json(self._meta_path)
        known = stored or self._meta_of_manifest()
        if known != meta:
            self._reopen(known, meta, restart)
        if stored != meta:
            write_text_atomically(self._meta_path, json.dumps(meta, indent=1))
        for folder, _, _ in os.walk(self._maps):
            remove_stale_temporaries(folder)
        self._num_classes, self._finished = num_classes, None

    def put(self, name: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """Store the map of one image. A finished store is unfinished by it.

        Args:
            name: Image name, relative, may contain ``/``.
            label: (H, W) uint8, most probable classes before any threshold; 255 where none.
            confidence: (H, W) floats in [0, 1].

        Raises:
            ValueError: If the maps do not fit, or hold classes or confidences that cannot be.
            RuntimeError: If the store was not begun, or a folder with files is in the way.
        """
        path = self._path(name)
        num_classes = self._load_num_classes()
        label = np.asarray(label)
        known = label[label != 255]
        if known.size and known.max() >= num_classes:
            raise ValueError(
                f'the label of {name!r} has class {known.max()}, but the store in {self.root} was '
                f'begun with num_classes={num_classes}'
            )
        try:
            data = encode_map(label, confidence)
        except ValueError as error:
            raise ValueError(f'cannot store the pseudo-label of {name!r}: {error}') from error
        self._drop_manifest()
        if path.is_dir():
            _remove(path)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)

    def discard(self, names: Iterable[str]) -> None:
        """Remove maps and the manifest, so that these images are labeled again.

        Call it in one process while no other writes.

        Raises:
            RuntimeError: If in the place of a map there is a folder with files.
        """
        for name in names:
            _remove(self._path(name))
        self._drop_manifest()  # last: until then it tells which maps are damaged

    def measure(self, names: Iterable[str], thresholds: Thresholds) -> PseudoLabelStats:
        """Read maps and count what the thresholds keep; ranks may share the work and merge.

        Args:
            names: Images to count.
            thresholds: (C,), of :class:`~mmdmt.pseudo.ClassBalancedThreshold`.

        Returns:
            Counts of these images.

        Raises:
            ValueError: If there is not one threshold per class.
            StoreIncompleteError: If any map is missing or damaged; the error names them.
        """
        num_classes = self._load_num_classes()
        thresholds = _as_thresholds(thresholds, num_classes)
        total = PseudoLabelStats(*(np.zeros(num_classes, np.int64) for _ in range(3)))
        absent = []
        for name in names:
            try:
                total.merge(self._measure_one(name, thresholds))
            except (StoreIncompleteError, DamagedMapError):
                absent.append(name)
        if absent:
            raise self._incomplete(absent)
        return total

    def finish(
        self,
        names: Sequence[str],
        thresholds: Thresholds,
        stats: Optional[PseudoLabelStats] = None,
    ) -> Dict[str, Any]:
        """Write the manifest; call it in one process after all of them have written.

        Args:
            names: All images of the store.
            thresholds: (C,), kept in the manifest and applied by :meth:`get_thresholded`.
            stats: Merged result of :meth:`measure` with the same thresholds. Computed here by
                default, which reads every map once.

        Returns:
            dict: The manifest: the ``meta`` of :meth:`begin`, ``format_version``, ``thresholds``,
            ``num_images``, ``num_pixels``, ``kept_share`` and ``mean_confidence`` (of all pixels
            that have a class), per class ``predicted_pixels``, ``kept_pixels`` and
            ``class_confidence`` (mean, 0 of a class that was not predicted), and ``files`` with
            ``bytes`` and ``crc32`` of each image.

        Raises:
            StoreIncompleteError: If any map is missing or damaged; the error names them.
        """
        values = _as_thresholds(thresholds, self._load_num_classes())
        stats = self.measure(names, values) if stats is None else stats
        absent = [name for name in names if name not in stats.files]
        if absent:
            raise self._incomplete(absent)
        manifest = dict(
            self._load_meta(),
            format_version=FORMAT_VERSION,
            thresholds=values.tolist(),
            **_summarize(names, stats),
        )
        write_text_atomically(self._manifest_path, json.dumps(manifest, indent=1))
        self._finished = None
        return manifest

    # ---------------------------------------------------------------- reading

    def get(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """Stored map of one image, before any threshold, also of an unfinished store.

        It is not compared with the manifest.

        Args:
            name: Image name.

        Returns:
            Label (H, W) uint8, and confidence (H, W) float32.

        Raises:
            StoreIncompleteError: If the image has no map.
            DamagedMapError: If its file is truncated or damaged.
        """
        return self._decode(name, self._read(name))

    def get_thresholded(
        self, name: str, thresholds: Optional[Thresholds] = None
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Stored map of one image with labels below the threshold of their class set to 255.

        Args:
            name: Image name.
            thresholds: (C,). By default those of the manifest, which the store then needs, and
                with whose checksum the file is compared.

        Returns:
            Label (H, W) uint8, and confidence (H, W) float32.

        Raises:
            StoreIncompleteError: If the image has no map, or the store is not finished.
            DamagedMapError: If its file is truncated or damaged, or not the one of the manifest.
        """
        data = self._read(name)
        if thresholds is None:
            finished = self._load_finished()
            self._compare(name, data, finished.checksums.get(name))
            thresholds = finished.thresholds
        else:
            thresholds = _as_thresholds(thresholds, self._load_num_classes())
        label, confidence = self._decode(name, data)
        return apply_thresholds(label, confidence, thresholds), confidence

    # ------------------------------------------------------------------ parts

    def _path(self, name: str) -> Path:
        if any(part in ('', '.', '..') for part in name.split('/')):
            raise ValueError(
                f'image name {name!r} must be a relative path without empty, "." or ".." parts'
            )
        return self._maps / f'{name}{_SUFFIX}'

    def _reopen(self, known: Optional[Dict[str, Any]], meta: Dict[str, Any], restart: bool) -> None:
        """Make the store ready for a new ``meta``, if the maps that are there may stay or go."""
        has_maps = self._maps.exists() and any(self._maps.rglob(f'*{_SUFFIX}'))
        differing = _differing_keys(known or {}, meta)
        if has_maps and known is None and not restart:
            raise StoreMismatchError(
                f'{self._meta_path} is lost or damaged, so that nothing tells which network made '
                f'the pseudo-labels in {self.root}. Delete the folder and run the stage again'
            )
        if has_maps and differing and not restart:
            found = ', '.join(
                f'{key}: {known.get(key)!r} -> {meta.get(key)!r}' for key in differing
            )
            raise StoreMismatchError(
                f'{self.root} holds pseudo-labels of another origin ({found}). Delete the folder '
                'if they are not needed, or label into another one'
            )
        if differing:
            self._drop_manifest()
            shutil.rmtree(self._maps, ignore_errors=True)
        else:
            self.discard(self.missing(self._checksums()))

    def _read_manifest(self) -> Optional[Dict[str, Any]]:
        """The manifest, None if it is absent or damaged."""
        manifest = _read_json(self._manifest_path)
        return manifest if manifest and manifest.keys() >= _RESULT_KEYS else None

    def _drop_manifest(self) -> None:
        self._manifest_path.unlink(missing_ok=True)
        self._finished = None

    def _meta_of_manifest(self) -> Optional[Dict[str, Any]]:
        """The ``meta`` a finished store was begun with, None if it is not finished."""
        manifest = self._read_manifest()
        if manifest is None:
            return None
        return {key: value for key, value in manifest.items() if key not in _RESULT_KEYS}

    def _checksums(self) -> Dict[str, int]:
        """CRC-32 of the files by image, as far as the manifest has them."""
        manifest = self._read_manifest()
        if manifest is None or manifest['format_version'] != FORMAT_VERSION:
            return {}
        return {name: facts['crc32'] for name, facts in manifest['files'].items()}

    def _load_meta(self) -> Dict[str, Any]:
        meta = _read_json(self._meta_path)
        if meta is None:
            raise RuntimeError(
                f'{self.root} is no pseudo-label store: {self._meta_path.name} is missing or '
                'damaged; call begin() first'
            )
        return meta

    def _load_num_classes(self) -> int:
        if self._num_classes is None:
            self._num_classes = self._load_meta()['num_classes']
        return self._num_classes

    def _load_finished(self) -> '_Finished':
        if self._finished is None:  # once per loader worker
            thresholds = np.array(self.manifest['thresholds'], np.float32)
            self._finished = _Finished(thresholds, self._checksums())
        return self._finished

    def _read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise self._incomplete([name]) from error
        except (IsADirectoryError, PermissionError) as error:  # the latter on Windows
            if not path.is_dir():
                raise
            raise self._damaged(name, 'it is a folder') from error

    def _decode(self, name: str, data: bytes) -> Tuple[np.ndarray, np.ndarray]:
        try:
            return decode_map(data)
        except DamagedMapError as error:
            raise self._damaged(name, str(error)) from error

    def _compare(self, name: str, data: bytes, checksum: Optional[int]) -> None:
        """Refuse a file that is not the one that was there when the store was finished."""
        if checksum is not None and zlib.crc32(data) != checksum:
            raise self._damaged(name, 'its checksum is not that of manifest.json')

    def _verify(self, name: str, checksum: Optional[int]) -> None:
        """Refuse a map that is not complete; one with the checksum was decoded to get it."""
        data = self._read(name)
        self._compare(name, data, checksum)
        if checksum is None:
            self._decode(name, data)

    def _damaged(self, name: str, reason: str) -> DamagedMapError:
        return DamagedMapError(
            f'{self._path(name)} cannot be used: {reason}. Run the stage that made it again with '
            'the same command; only this image is labeled anew'
        )

    def _measure_one(self, name: str, thresholds: np.ndarray) -> PseudoLabelStats:
        data = self._read(name)
        label, confidence = self._decode(name, data)
        kept = apply_thresholds(label, confidence, thresholds)
        num_classes = len(thresholds)
        counts = [np.bincount(x.ravel(), minlength=256)[:num_classes] for x in (label, kept)]
        sums = np.bincount(label.ravel(), confidence.ravel(), minlength=256)[:num_classes]
        facts = dict(bytes=len(data), crc32=zlib.crc32(data), confidence=float(sums.sum()))
        steps = np.rint(sums * _CONFIDENCE_STEPS).astype(np.int64)
        return PseudoLabelStats(*counts, steps, {name: facts})

    def _incomplete(self, absent: List[str]) -> StoreIncompleteError:
        return StoreIncompleteError(
            f'{len(absent)} image(s) have no complete pseudo-label in {self.root}: '
            f'{_enumerate(absent)}. Run the stage that makes them again; it labels only what is '
            'missing',
            absent,
        )


class _Finished(NamedTuple):
    """What reading needs of the manifest."""

    thresholds: np.ndarray
    checksums: Dict[str, int]


def _enumerate(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _MAX_NAMES_IN_ERRORS
    return ', '.join(names[:_MAX_NAMES_IN_ERRORS]) + (f' and {more} more' if more > 0 else '')


def _differing_keys(known: Dict[str, Any], meta: Dict[str, Any]) -> List[str]:
    """Keys of another origin: all that differ but those of thresholds."""
    return sorted(
        key
        for key in known.keys() | meta.keys()
        if known.get(key) != meta.get(key) and key not in THRESHOLD_KEYS
    )


def _remove(path: Path) -> None:
    """Remove a file, or a folder that is empty: nothing here would have made one with files."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        path.rmdir()
    except OSError as error:
        raise RuntimeError(
            f'{path} is a folder with files where a pseudo-label has to be written: move it away '
            'and run the same command again'
        ) from error


def _summarize(names: Sequence[str], stats: PseudoLabelStats) -> Dict[str, Any]:
    """Part of the manifest that counts; the same for any number of ranks."""
    pixels = int(stats.predicted.sum())
    confidence = math.fsum(stats.files[name]['confidence'] for name in names)
    return dict(
        num_images=len(names),
        num_pixels=pixels,
        kept_share=int(stats.kept.sum()) / max(1, pixels),
        mean_confidence=confidence / max(1, pixels),
        predicted_pixels=stats.predicted.tolist(),
        kept_pixels=stats.kept.tolist(),
        class_confidence=_mean_confidence(stats).tolist(),
        files={name: {key: stats.files[name][key] for key in ('bytes', 'crc32')} for name in names},
    )


def _mean_confidence(stats: PseudoLabelStats) -> np.ndarray:
    """(C,) mean confidence of the pixels each class was predicted for."""
    return stats.confidence / _CONFIDENCE_STEPS / np.maximum(stats.predicted, 1)


def _as_thresholds(thresholds: Thresholds, num_classes: int) -> np.ndarray:
    values = np.asarray(thresholds, np.float32)
    if values.shape != (num_classes,):
        raise ValueError(
            f'there must be one threshold for each of the {num_classes} classes, got shape '
            f'{values.shape}'
        )
    return values


def _read_json(path: Path) -> Optional[Dict[str, Any]]:
    """Content of a file, None if it is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):  # the latter also of bytes that are no text
        return None
    return content if isinstance(content, dict) else None
