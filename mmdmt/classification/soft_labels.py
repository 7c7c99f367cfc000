"""Class probabilities of unlabeled images in one file, and which of them are used."""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

import numpy as np

from mmdmt.checks import check_choice
from mmdmt.files import atomic_path
from mmdmt.pseudo.store import StoreIncompleteError, StoreMismatchError

FORMAT_VERSION = 1
SELECTIONS = ('strict', 'rank', 'class')


class SoftLabels(NamedTuple):
    """Content of a :class:`SoftLabelStore`.

    Attributes:
        names (list[str]): Images.
        probabilities (np.ndarray): (N, C) float32.
        selected (np.ndarray): (N,) bool, which are used for training.
        manifest (dict): Where they come from; see :meth:`SoftLabelStore.write`.
    """

    names: List[str]
    probabilities: np.ndarray
    selected: np.ndarray
    manifest: Dict[str, Any]


def select_by_confidence(
    confidence: np.ndarray, ratio: float, rule: str = 'strict', label: Optional[np.ndarray] = None
) -> np.ndarray:
    """The most confident images, over all classes together or of each class.

    Args:
        confidence (np.ndarray): (N,) largest class probability of each image.
        ratio (float): Share to select, in (0, 1].
        rule (str): 'strict': those above (``>``) the value at position
            ``int(-ratio N + 1)`` of the sorted confidences, so two or three images fewer than
            ``ratio N``, and none of those that tie with that value; at a ratio of 1 all images. As
            published. 'rank': exactly ``round(ratio N)``, ties by position. 'class': so of the
            images of each label (CBST, Zou et al., ECCV 2018), at least one of each.
        label (np.ndarray, optional): (N,) most probable classes, for the rule 'class'.

    Returns:
        np.ndarray: (N,) bool.

    Raises:
        ValueError: On an unknown rule, a ratio outside (0, 1], a confidence that is not finite, or
            if nothing is selected.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f'`ratio` must be in (0, 1], got {ratio}')
    check_choice('selection', rule, SELECTIONS)
    if not np.isfinite(confidence).all():
        raise ValueError('`confidence` has NaN or infinite values: has training diverged?')
    count = len(confidence)
    if ratio == 1:
        selected = np.ones(count, bool)
    elif rule == 'class':
        selected = np.zeros(count, bool)
        for own in (label == each for each in np.unique(label)):
            selected[own] = _highest(confidence[own], max(1, round(ratio * own.sum())))
    elif rule == 'rank':
        selected = _highest(confidence, round(ratio * count))
    else:
        # Counted from the end; 0 would be the least confident image.
        position = int(-ratio * count + 1)
        threshold = np.sort(confidence)[position] if position else np.inf
        selected = confidence > threshold
    if not selected.any():
        fix = 'use a larger ratio'
        if rule == 'strict':  # it also drops those that tie with the threshold
            fix += ", or `labeling=dict(selection='rank')` where many have the same confidence"
        raise ValueError(
            f'a ratio of {ratio:g} selects none of {count} images by the rule {rule!r}: {fix}'
        )
    return selected


def _highest(values: np.ndarray, number: int) -> np.ndarray:
    """Which (N,) of the values are the ``number`` highest, ties by position."""
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind='stable')[:number]] = True
    return chosen


class SoftLabelStore:
    """Soft labels of all unlabeled images in one compressed file that is complete or absent.

    Layout (``.npz``): ``names`` (UTF-8, newline-joined), ``probabilities`` (N, C) float16,
    ``label`` and ``confidence`` (N,) int32 and float32, which keep the most probable class and
    its probability exact, ``selected`` (N,) and ``manifest`` (JSON).

    Args:
        path (str | Path): The file. It need not exist.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)

    @property
    def is_complete(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file()

    @property
    def manifest(self) -> Dict[str, Any]:
        """What is known of the labels in the file; see :meth:`write`.

        Raises:
            StoreIncompleteError: If there is no file.
            StoreMismatchError: If it is damaged or of another format.
        """
        return json.loads(bytes(self._arrays('manifest')[0]))

    def write(
        self,
        names: Sequence[str],
        probabilities: np.ndarray,
        selected: np.ndarray,
        meta: Dict[str, Any],
    ) -> Dict[str, Any]:
        """Write the file; one process only.

        Args:
            names (Sequence[str]): Images.
            probabilities (np.ndarray): (N, C).
            selected (np.ndarray): (N,) bool.
            meta (dict): Where they come from, JSON values: ``checkpoint``, ``ratio``, ...

        Returns:
            dict: The manifest: ``meta``, ``format_version``, ``num_images``, ``num_selected``,
            ``mean_confidence``, and per class ``predicted`` and ``kept``.

        Raises:
            ValueError: If the arrays do not fit the names, or are no probabilities.
        """
        probabilities = np.asarray(probabilities, np.float32)
        _check(names, probabilities, selected)
        label, confidence = probabilities.argmax(1), probabilities.max(1)
        classes = probabilities.shape[1]
        manifest = dict(
            meta,
            format_version=FORMAT_VERSION,
            num_images=len(names),
            num_selected=int(selected.sum()),
            mean_confidence=float(confidence.mean()),
            predicted=np.bincount(label, minlength=classes).tolist(),
            kept=np.bincount(label[selected], minlength=classes).tolist(),
        )
        with atomic_path(self.path) as temporary, open(temporary, 'wb') as file:
            np.savez_compressed(
                file,
                names=_as_bytes('\n'.join(names)),
                probabilities=probabilities.astype(np.float16),
                label=label.astype(np.int32),
                confidence=confidence,
                selected=selected,
                manifest=_as_bytes(json.dumps(manifest)),
            )
        return manifest

    def read(self) -> SoftLabels:
        """Read everything.

        Returns:
            SoftLabels: Names, probabilities, selection and manifest.

        Raises:
            StoreIncompleteError: If there is no file.
            StoreMismatchError: If it is damaged or of another format.
        """
        keys = ('names', 'probabilities', 'label', 'confidence', 'selected', 'manifest')
        names, probabilities, label, confidence, selected, manifest = self._arrays(*keys)
        probabilities = probabilities.astype(np.float32)
        # Rounding to 16 bits may have made two classes equal: the label stays the largest.
        np.minimum(probabilities, confidence[:, None], out=probabilities)
        rows = np.arange(len(label))
        probabilities[rows, label] = 0
        ceiling = np.nextafter(confidence, np.float32(0))[:, None]
        np.minimum(probabilities, ceiling, out=probabilities)
        probabilities[rows, label] = confidence
        names = bytes(names).decode().split('\n')
        return SoftLabels(names, probabilities, selected, json.loads(bytes(manifest)))

    def _arrays(self, *keys: str) -> List[np.ndarray]:
        if not self.is_complete:
            raise StoreIncompleteError(
                f'{self.path} does not exist: run the stage that makes these soft labels again'
            )
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as content:
                arrays = [content[key] for key in keys]
                version = json.loads(bytes(content['manifest'])).get('format_version')
        except (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise StoreMismatchError(
                f'{self.path} is damaged ({error}): run the stage that makes it again'
            ) from error
        if version != FORMAT_VERSION:
            raise StoreMismatchError(
                f'{self.path} has format version {version}, this mmdmt reads {FORMAT_VERSION}'
            )
        return arrays


def _check(names: Sequence[str], probabilities: np.ndarray, selected: np.ndarray) -> None:
    if probabilities.ndim != 2 or not len(names) == len(probabilities) == len(selected):
        raise ValueError(
            f'{len(names)} names need probabilities (N, C) and a selection (N,), got '
            f'{probabilities.shape} and {np.shape(selected)}'
        )
    if not np.isfinite(probabilities).all() or probabilities.min(initial=0) < 0:
        raise ValueError('soft labels must be finite and not negative: has training diverged?')
    if len(set(names)) != len(names) or any('\n' in name for name in names):
        raise ValueError('image names must differ and must not contain line breaks')


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
