"""Pseudo-labels on disk: complete, or not used."""

import json
import logging
import os
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

from mmdmt.checks import check_range, listed
from mmdmt.files import MAX_NAME_BYTES, atomic_path, remove_stale_temporaries, write_text_atomically
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
_SUFFIX = '.plc'  # pseudo-label and confidence


class StoreIncompleteError(PseudoLabelError):
    """Maps that are needed are not there."""


class StoreMismatchError(PseudoLabelError):
    """A store holds maps of another network or another set of classes."""


class PseudoLabelStore:
    """Folder with one compact map of classes and confidences per unlabeled image.

    Writing: :meth:`begin` (one process, before the others write), :meth:`put` per image (ranks
    write different images at the same time), :meth:`finish` (one process, after all have
    written). Each file is complete or absent whenever the process is killed, so a pass that was
    cut off goes on with :meth:`missing`. Only :meth:`finish` makes the manifest, and without a
    manifest the store is not used.

    Stored confidences are quantized (see :mod:`mmdmt.pseudo.codec`): thresholds have to come from
    what :meth:`get` returns, so that they do not depend on where a pass was cut off. They are
    applied when maps are read, so that another ratio needs no new labels. Each map has a checksum
    of its content, with the name of the image, which every read verifies; so has the manifest.

    Layout: ``meta.json``, ``maps/<name>.plc``, ``manifest.json``.

    Args:
        root: Folder of the store. It need not exist.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(root)
        self._maps = self.root / 'maps'
        self._meta_path = self.root / 'meta.json'
        self._manifest_path = self.root / 'manifest.json'
        self._thresholds: Optional[np.ndarray] = None

    @property
    def is_complete(self) -> bool:
        """Whether :meth:`finish` was reached."""
        return _read_json(self._manifest_path) is not None

    @property
    def manifest(self) -> Dict[str, Any]:
        """What is in the store, read from disk; see :meth:`finish`.

        Raises:
            StoreIncompleteError: If the store was not finished.
            StoreMismatchError: If it was written in another format, or changed since.
        """
        manifest = _read_json(self._manifest_path)
        if manifest is None:
            raise StoreIncompleteError(
                f'{self._manifest_path} is not there: labeling was not finished. Run the stage '
                'that makes these pseudo-labels again; it goes on where it was'
            )
        if manifest['format_version'] != FORMAT_VERSION:
            raise StoreMismatchError(
                f'{self._manifest_path} has format version {manifest["format_version"]}, this '
                f'mmdmt reads {FORMAT_VERSION}: label again in an empty folder'
            )
        fault = _fault_of(manifest)
        if fault:
            raise StoreMismatchError(
                f'{self._manifest_path} was changed after it was written: {fault}. Delete it and '
                'run the stage that makes these pseudo-labels again; no image is labeled anew'
            )
        return manifest

    def missing(self, names: Iterable[str]) -> List[str]:
        """Those of ``names`` that have no map, or a damaged one, of which a warning is logged.

        Every map is read and decoded; ranks may share the work.
        """
        absent, damaged = [], []
        for name in names:
            try:
                self.get(name)
            except PseudoLabelError as error:
                absent.append(name)
                damaged += [name] if isinstance(error, DamagedMapError) else []
        if damaged:
            found = f'{len(damaged)} pseudo-label(s) in {self.root} are damaged: '
            print_log(found + listed(damaged), logger='current', level=logging.WARNING)
        return absent

    def begin(self, meta: Dict[str, Any]) -> None:
        """Open the store for writing; call it in one process before any of them writes.

        A store begun with the same ``meta`` is continued, finished or not. Where only a key of
        ``THRESHOLD_KEYS`` differs, its maps are kept and the manifest is dropped.

        Args:
            meta: What identifies the labels, JSON values: ``num_classes`` (1 to 255) and where
                they come from, such as ``checkpoint``, ``ratio``, ``rule``.

        Raises:
            StoreMismatchError: If the store holds maps of another ``meta``, or maps without any.
        """
        check_range('num_classes', meta.get('num_classes'), 1, 255)  # labels are uint8
        meta = json.loads(json.dumps(meta))
        known = _read_json(self._meta_path)
        if known != meta:
            self._refuse_maps_of_another(known or {}, meta)
            self._drop_manifest()
            write_text_atomically(self._meta_path, json.dumps(meta, indent=1))
        for folder, _, _ in os.walk(self.root):
            remove_stale_temporaries(folder)

    def put(self, name: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """Store the map of one image. A finished store is unfinished by it.

        Args:
            name: Image name, relative, may contain ``/``.
            label: (H, W) uint8, classes before any threshold; 255 where none.
            confidence: (H, W) floats in [0, 1].

        Raises:
            ValueError: If the maps do not fit, or hold classes or confidences that cannot be.
        """
        path = self._path(name)
        try:
            data = encode_map(label, confidence, name)
        except ValueError as error:
            raise ValueError(f'cannot store the pseudo-label of {name!r}: {error}') from error
        self._drop_manifest()
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)

    def measure(self, names: Iterable[str], thresholds: Thresholds) -> np.ndarray:
        """Count what thresholds (C,) keep of some images; ranks may share the work and add.

        Returns:
            (3, C) int64: per class the pixels it was predicted for, those of them that reach the
            threshold, and the sum of their confidences in steps of 2^-16.

        Raises:
            StoreIncompleteError: If any map is missing or damaged; the error names them.
        """
        thresholds = np.asarray(thresholds, np.float32)
        total, absent = np.zeros((3, len(thresholds)), np.int64), []
        for name in names:
            try:
                total += self._measure_one(name, thresholds)
            except PseudoLabelError:
                absent.append(name)
        if absent:
            raise self._incomplete(absent)
        return total

    def finish(
        self, names: Sequence[str], thresholds: Thresholds, counts: Optional[np.ndarray] = None
    ) -> Dict[str, Any]:
        """Write the manifest; call it in one process after all of them have written.

        Args:
            names: All images of the store.
            thresholds: (C,), applied by :meth:`get_thresholded`.
            counts: Sum of :meth:`measure` over all images; by default it is called here.

        Returns:
            dict: The manifest: the ``meta`` of :meth:`begin`, ``format_version``, ``thresholds``,
            ``num_images``, ``num_pixels``, ``kept_share`` and ``mean_confidence`` (of all pixels
            that have a class), per class ``predicted_pixels``, ``kept_pixels`` and
            ``class_confidence`` (mean, 0 of a class that was not predicted), and ``files``, the
            names of the images; and ``checksum``, of all that.

        Raises:
            ValueError: If a threshold is NaN or infinite.
        """
        values = np.asarray(thresholds, np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f'thresholds of {self.root} must be finite, got {values.tolist()}')
        predicted, kept, sums = self.measure(names, values) if counts is None else counts
        pixels, sums = int(predicted.sum()), sums / _CONFIDENCE_STEPS
        manifest = dict(
            json.loads(self._meta_path.read_text(encoding='utf-8')),
            format_version=FORMAT_VERSION,
            thresholds=values.tolist(),
            num_images=len(names),
            num_pixels=pixels,
            kept_share=int(kept.sum()) / max(1, pixels),
            mean_confidence=float(sums.sum()) / max(1, pixels),
            predicted_pixels=predicted.tolist(),
            kept_pixels=kept.tolist(),
            class_confidence=(sums / np.maximum(predicted, 1)).tolist(),
            files=list(names),
        )
        manifest['checksum'] = _checksum(manifest)
        write_text_atomically(self._manifest_path, json.dumps(manifest, indent=1))
        self._thresholds = None
        return manifest

    def get(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """Label (H, W) uint8 and confidence (H, W) float32 of an image, before any threshold.

        Raises:
            StoreIncompleteError: If the image has no map.
            DamagedMapError: If its file is truncated or damaged.
        """
        path = self._path(name)
        try:
            return decode_map(path.read_bytes(), name)
        except FileNotFoundError as error:
            raise self._incomplete([name]) from error
        except DamagedMapError as error:
            raise DamagedMapError(
                f'{path} cannot be used: {error}. Run the stage that made it again with the same '
                'command; only this image is labeled anew'
            ) from error

    def get_thresholded(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """The same of a finished store, with 255 where the threshold of the class is not reached.

        Raises:
            StoreIncompleteError: If the image has no map, or the store is not finished.
            DamagedMapError: If its file is truncated or damaged.
        """
        if self._thresholds is None:  # once per loader worker
            self._thresholds = np.array(self.manifest['thresholds'], np.float32)
        label, confidence = self.get(name)
        return apply_thresholds(label, confidence, self._thresholds), confidence

    def _path(self, name: str) -> Path:
        check_name(name)
        return self._maps / f'{name}{_SUFFIX}'

    def _refuse_maps_of_another(self, known: Dict[str, Any], meta: Dict[str, Any]) -> None:
        """Refuse a new ``meta`` for maps that are there, unless only thresholds differ."""
        differing = sorted(
            key
            for key in known.keys() | meta.keys()
            if known.get(key) != meta.get(key) and key not in THRESHOLD_KEYS
        )
        if differing and any(self._maps.rglob(f'*{_SUFFIX}')):
            found = ', '.join(f'{k}: {known.get(k)!r} -> {meta.get(k)!r}' for k in differing)
            raise StoreMismatchError(
                f'{self.root} holds pseudo-labels of another origin ({found}). Delete the folder '
                'if they are not needed, or label into another one'
            )

    def _drop_manifest(self) -> None:
        self._manifest_path.unlink(missing_ok=True)
        self._thresholds = None

    def _measure_one(self, name: str, thresholds: np.ndarray) -> np.ndarray:
        label, confidence = self.get(name)
        kept = apply_thresholds(label, confidence, thresholds)
        counts = [np.bincount(values.ravel(), minlength=256) for values in (label, kept)]
        sums = np.bincount(label.ravel(), confidence.ravel(), minlength=256)
        steps = np.rint(sums * _CONFIDENCE_STEPS).astype(np.int64)
        return np.stack([*counts, steps])[:, : len(thresholds)]

    def _incomplete(self, absent: List[str]) -> StoreIncompleteError:
        return StoreIncompleteError(
            f'{len(absent)} image(s) have no complete pseudo-label in {self.root}: '
            f'{listed(absent, 5)}. Run the stage that makes them again; it labels only what is '
            'missing'
        )


def _fault_of(manifest: Dict[str, Any]) -> Optional[str]:
    """What shows that a manifest is not the one that was written; None if nothing does."""
    values = manifest['thresholds']
    if not isinstance(values, list) or len(values) != manifest['num_classes']:
        return f'`thresholds` is no list of {manifest["num_classes"]} numbers, one for each class'
    for index, value in enumerate(values):
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:  # also NaN
            return f'`thresholds[{index}]` is {value!r}, not a number in [0, 1]'
    if manifest.get('checksum', _checksum(manifest)) != _checksum(manifest):  # formerly none
        return '`checksum` is not that of its content'
    return None


def _checksum(manifest: Dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != 'checksum'}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_name(name: str) -> None:
    """Refuse, by a ``ValueError``, the name of an image under which no map can be stored."""
    parts = name.split('/')
    if any(part in ('', '.', '..') for part in parts):
        raise ValueError(
            f'image name {name!r} must be a relative path without empty, "." or ".." parts'
        )
    longest = MAX_NAME_BYTES - len(_SUFFIX)
    if max(len(part.encode()) for part in parts) > longest:
        raise ValueError(
            f'image name {name!r} is too long to store its labels: rename the image, {longest} '
            'bytes are the most'
        )


def _read_json(path: Path) -> Optional[Dict[str, Any]]:
    """Content of a file, None if it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):  # the latter also of bytes that are no text
        return None
