"""Finding everything that is wrong with the data, before training does."""

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Optional, Union

from mmdmt.datasets.checks.classes import classifies, compare_classes
from mmdmt.datasets.checks.file_facts import (
    FactCache,
    FileFacts,
    LabelRules,
    MaskModeError,
    map_in_threads,
)
from mmdmt.datasets.checks.problems import Problem
from mmdmt.datasets.checks.sources import Sample, Source, read_sources


def check_dataset(
    train: Any,
    val: Any = None,
    *,
    test: Any = None,
    num_classes: Optional[int] = None,
    full: bool = True,
    cache_file: Optional[Union[str, Path]] = None,
    workers: Optional[int] = None,
    progress: bool = True,
) -> list[Problem]:
    """Find every problem of lists, images, masks and classes, of segmentation or classification.

    Args:
        train (BaseDataset | dict | list): Training set, its config, or several.
        val (BaseDataset | dict, optional): Validation set, or its config.
        test (BaseDataset | dict, optional): Test set; in classification its classes are checked.
        num_classes (int, optional): Number of classes of a classifier.
        full (bool): Decode every file; else only existence and headers. Defaults to True.
        cache_file (str | Path, optional): JSON file that remembers sound files, so that the next
            check decodes only new and changed ones. Used when ``full``.
        workers (int, optional): Threads. Defaults to the number of cores, at most 8.
        progress (bool): Show a progress bar on stderr. Defaults to True.

    Returns:
        list[Problem]: Everything that is wrong; empty if all is well.
    """
    problems: list[Problem] = []
    train_sources = read_sources(train, problems)
    val_sources = read_sources(val, problems)
    problems += _labeled_and_unlabeled(train_sources)
    problems += _training_and_validation(train_sources, val_sources)
    problems += compare_classes(train_sources, val_sources, test, num_classes)
    sources = train_sources + val_sources
    pairs = [(sample, source.rules) for source in sources for sample in source.samples]
    cache = FactCache(cache_file, full)
    title = 'decoding images and masks' if full else 'looking at images and masks'
    try:
        found = map_in_threads(lambda p: _check_files(*p, cache), pairs, title, workers, progress)
    finally:
        cache.save()  # also what an interrupted check has done need not be done again
    return list(dict.fromkeys([*problems, *chain.from_iterable(found)]))


def _by_identity(sources: Sequence[Source]) -> dict[str, Sample]:
    return {s.identity: s for source in sources for s in source.samples if not s.odd}


def _both(source: Source, others: Mapping[str, Sample], kind: str, what: str) -> Iterator[Problem]:
    """Find the images of a source that are among others, too."""
    for sample in source.samples:
        other = None if sample.odd else others.get(sample.identity)
        if other is not None:
            where = other.file if other.line is None else f'{other.file}:{other.line}'
            image = sample.image or sample.identity
            yield sample.problem(kind, f'{image} is {what}, too ({where})')


def _labeled_and_unlabeled(sources: Sequence[Source]) -> Iterator[Problem]:
    """Find images that are in a labeled source and in an unlabeled list.

    An unlabeled *folder* may contain the labeled images: it was not drawn to be the rest.
    """
    labeled = _by_identity([source for source in sources if source.labeled])
    for source in sources:
        if source.has_list and not source.labeled:
            yield from _both(source, labeled, 'in both lists', 'labeled')


def _training_and_validation(train: Sequence[Source], val: Sequence[Source]) -> Iterator[Problem]:
    """Find validation images that are labeled for training; in classification, unlabeled too."""
    held_out = _by_identity(val)
    for source in train:
        if source.labeled or classifies(val):
            yield from _both(source, held_out, 'validation overlap', 'a validation image')


def _check_files(sample: Sample, rules: LabelRules, cache: FactCache) -> list[Problem]:
    problems: list[Problem] = []
    if sample.odd or sample.image is None:
        return problems
    image = _facts(sample, 'image', sample.image, cache, problems)
    mask = sample.mask and _facts(sample, 'mask', sample.mask, cache, problems)
    if image and mask and (image.width, image.height) != (mask.width, mask.height):
        sizes = f'{mask.width}x{mask.height}, its image {image.width}x{image.height}'
        problems.append(sample.problem('mask size', f'{sample.mask} is {sizes}'))
    illegal = rules.illegal(mask.ids) if mask and mask.ids else []
    if illegal:
        problems.append(sample.problem('label id', _describe_ids(sample.mask, illegal, rules)))
    return problems


def _facts(
    sample: Sample, kind: str, path: str, cache: FactCache, problems: list[Problem]
) -> Optional[FileFacts]:
    """Read the facts of a file; None if that is not possible, which is a problem."""
    if not osp.isfile(path):
        problems.append(sample.problem(f'missing {kind}', f'{path} does not exist'))
        return None
    try:
        return cache.facts(kind, path)
    except MaskModeError as error:
        problems.append(sample.problem('mask mode', f'{path}: {error}'))
    except Exception as error:  # Pillow raises nearly anything on broken files
        found = f'{path}: {type(error).__name__} {error}'
        problems.append(sample.problem(f'corrupt {kind}', found))
    return None


def _describe_ids(path: str, illegal: Sequence[int], rules: LabelRules) -> str:
    shown = ', '.join(str(label) for label in illegal[:8]) + (', ...' if len(illegal) > 8 else '')
    shift = ' after reduce_zero_label' if rules.reduce_zero_label else ''
    last = rules.num_classes - 1
    return f'{path} has ids {shown}: classes are 0 to {last}{shift}, ignored {rules.ignore_index}'
