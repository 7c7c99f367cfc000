"""Labeled and unlabeled images side by side, robust against broken files."""

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.logging import print_log

from mmdmt.checks import check_range, listed
from mmdmt.pseudo import PseudoLabelError
from mmdmt.registry import DATASETS

MAX_REPLACEMENTS = 20


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's (CPU) generators, and restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(np.array([seed % 2**32, seed // 2**32], dtype=np.uint32))
    # Not torch.manual_seed: it would reseed the generators of the devices too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@DATASETS.register_module()
class SemiDataset(ConcatDataset):
    """Concatenation of the sources of semi-supervised training.

    Differs from mmengine's ``ConcatDataset`` in three things:

    - A source without classes, such as :class:`~mmdmt.datasets.UnlabeledDataset`, may stand beside
      labeled ones. The meta information is that of the first source.
    - Drawn with a :class:`~mmdmt.datasets.SeededIndex`, a sample is the same in any worker of any
      run: its augmentation starts from the seed of the draw.
    - An image that cannot be loaded is replaced by another one of the same source, counted and
      named in a warning. The count is shared by all workers of this rank. A stored pseudo-label
      that is missing or damaged is an error, because running again makes it anew.

    Args:
        datasets (Sequence[dict | BaseDataset]): The sources: labeled first, then unlabeled, which
            is their order in each batch. Several folders that make up one source can be joined by
            a nested ``ConcatDataset``.
        max_corrupt_share (float): Share of unreadable images, of all images, above which
            training stops. Defaults to 0.01.

    Raises:
        ValueError: If there is no source, ``max_corrupt_share`` is no share, or two sources have
            different classes.
    """

    def __init__(
        self, datasets: Sequence[Union[dict, BaseDataset]], max_corrupt_share: float = 0.01
    ) -> None:
        # ConcatDataset.__init__ insists on equal meta information, hence is not called. These
        # are all the attributes it sets.
        if not datasets:
            raise ValueError('`datasets` is empty; give at least one source')
        check_range('max_corrupt_share', max_corrupt_share, 0, 1)
        self.datasets = [DATASETS.build(d) if isinstance(d, dict) else d for d in datasets]
        self.ignore_keys: list[str] = []
        self._metainfo = self.datasets[0].metainfo
        self._fully_initialized = False
        self.max_corrupt_share = max_corrupt_share
        self._check_classes()
        self.full_init()
        # One flag an image, in memory that all loader workers share whichever way they start.
        # Writers only ever set flags, so they need no lock.
        self._corrupt = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def _check_classes(self) -> None:
        expected = self._metainfo.get('classes')
        for number, dataset in enumerate(self.datasets):
            classes = dataset.metainfo.get('classes')
            if classes is not None and expected is not None and list(classes) != list(expected):
                raise ValueError(
                    f'source {number} ({type(dataset).__name__}) has the classes {classes}, but '
                    f'source 0 has {expected}; all sources must agree'
                )

    def __getitem__(self, idx: int) -> Any:
        """Load what the pipeline of the source returns for an index over all sources.

        Raises:
            RuntimeError: If more than ``max_corrupt_share`` of the images cannot be loaded.
            PseudoLabelError: If a stored pseudo-label is missing or damaged.
        """
        seed = getattr(idx, 'seed', None)
        with contextlib.nullcontext() if seed is None else seeded(seed):
            return self._load(int(idx))

    def _load(self, idx: int) -> Any:
        """Sample ``idx``, or while it cannot be loaded, another one of the same source."""
        source, index = self._get_ori_dataset_idx(idx)
        dataset = self.datasets[source]
        for _ in range(MAX_REPLACEMENTS):
            try:
                return dataset[index]
            except (MemoryError, PseudoLabelError):  # no fault of the image
                raise
            except Exception as error:
                self._note_corrupt(source, index, error)
            index = int(np.random.randint(len(dataset)))
        raise RuntimeError(
            f'{MAX_REPLACEMENTS} images in a row from source {source} '
            f'({type(dataset).__name__}) cannot be loaded. {self._corrupt_summary()}'
        )

    def _note_corrupt(self, source: int, index: int, error: Exception) -> None:
        start = self.cumulative_sizes[source - 1] if source else 0
        known = bool(self._corrupt[start + index])
        self._corrupt[start + index] = True
        reason = f'{type(error).__name__}: {error}'
        if self.corrupt_share > self.max_corrupt_share:
            raise RuntimeError(f'{self._corrupt_summary()} The last error was {reason}') from error
        if not known:
            what = f'{self._file(start + index)} cannot be loaded and is replaced by another image'
            print_log(f'{what} ({reason})', logger='current', level=logging.WARNING)

    def _file(self, idx: int) -> str:
        return self.get_data_info(idx).get('img_path', f'sample {idx}')

    def _corrupt_summary(self) -> str:
        files = self.corrupt_files
        return (
            f'{len(files)} of {len(self)} samples could not be loaded '
            f'(`max_corrupt_share={self.max_corrupt_share}`): {listed(files)}. '
            'Repair these files or take them off the lists; tools/misc/check_dataset.py '
            'finds all such files.'
        )

    @property
    def corrupt_share(self) -> float:
        """Share of the images that could not be loaded so far, by any worker of this rank."""
        return int(self._corrupt.sum()) / max(len(self), 1)

    @property
    def corrupt_files(self) -> list[str]:
        """Paths of the images that could not be loaded so far, by any worker of this rank."""
        return [self._file(idx) for idx in self._corrupt.nonzero().flatten().tolist()]
