"""Finding everything that is wrong with the data, before training does."""

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Optional, Union

from mmdmt.checks import listed
from mmdmt.datasets.checks.classes import classifies, compare_classes, warn_of_missing_ids
from mmdmt.datasets.checks.file_facts import (
    FactCache,
    FileFacts,
    LabelRules,
    MaskModeError,
    color_facts,
    find_copies,
    is_trainable_size,
    map_in_threads,
)
from mmdmt.datasets.checks.mask_values import FoundValues, explain_values
from mmdmt.datasets.checks.problems import Problem
from mmdmt.datasets.checks.sources import Sample, Source, read_sources
from mmdmt.datasets.mask_values import is_lossy


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
        progress (bool): Show a progress bar where stderr is a terminal. Defaults to True.

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
    pairs = [(sample, source) for source in sources for sample in source.samples]
    cache = FactCache(cache_file, full)
    title = 'decoding images and masks' if full else 'looking at images and masks'
    try:
        found = map_in_threads(lambda p: _check_files(*p, cache), pairs, title, workers, progress)
    finally:
        cache.save()  # also what an interrupted check has done need not be done again
    masks = [(s.mask, source.rules, ids) for (s, source), (_, ids, _) in zip(pairs, found)]
    warn_of_missing_ids(
        masks[: sum(len(source.samples) for source in train_sources)], train_sources
    )
    of_source = {id(source): FoundValues() for source in sources}
    for (_, source), (_, ids, colors) in zip(pairs, found):
        of_source[id(source)].add(ids, colors)
    problems += chain.from_iterable(each for each, _, _ in found)
    for source in sources:
        problems = explain_values(source, of_source[id(source)], problems)
    return list(dict.fromkeys(problems))


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
    train = [source for source in train if source.labeled or classifies(val)]
    for source in train:
        yield from _both(source, held_out, 'validation overlap', 'a validation image')
    samples = chain.from_iterable(source.samples for source in train)
    own = {s.image: s for s in samples if s.image and s.identity not in held_out and not s.odd}
    for copy, original in find_copies(
        own, {s.image: s for s in held_out.values() if s.image}
    ).items():
        found = f'{copy} has the content of the validation image {original}'
        yield own[copy].problem('validation overlap', found)


def _check_files(
    sample: Sample, source: Source, cache: FactCache
) -> tuple[list[Problem], Optional[Sequence[int]], bool]:
    """Problems of an image and its mask, the mask's ids where known, and whether as colors."""
    problems: list[Problem] = []
    if sample.odd or sample.image is None:
        return problems, None, False
    image = _facts(sample, source.image_rules.kind, sample.image, cache, problems)
    kind = source.rules.kind
    mask = sample.mask and _facts(sample, kind, sample.mask, cache, problems)
    if image:
        problems += _check_image(sample, image, source)
    if image and mask and source.image_rules.size(image) != (mask.width, mask.height):
        sizes = '{}x{}, its image {}x{}'.format(
            mask.width, mask.height, *source.image_rules.size(image)
        )
        problems.append(sample.problem('mask size', f'{sample.mask} is {sizes}'))
    ids = mask.ids if mask else None
    if mask is None and cache.decode and problems and problems[-1].kind == 'mask mode':
        return problems, _colors(sample.mask), True
    nearest = source.rules.values is not None and sample.mask and is_lossy(sample.mask)
    illegal = () if nearest else source.rules.illegal(ids or ())
    if illegal:
        found = _describe_ids(sample.mask, illegal, source.rules)
        problems.append(sample.problem('label id', found))
    return problems, ids, kind == 'color'


def _colors(path: str) -> Optional[Sequence[int]]:
    """The colors of a mask that is not one channel; None if it has none either."""
    try:
        return color_facts(path).ids
    except Exception:  # what is wrong has been said
        return None


def _check_image(sample: Sample, image: FileFacts, source: Source) -> Iterator[Problem]:
    refusal = source.image_rules.refusal(image)
    if refusal:
        yield sample.problem('image mode', f'{sample.image}: {refusal}')
    if not is_trainable_size(image):
        yield sample.problem('image size', f'{sample.image} is {image.width}x{image.height}')


def _facts(
    sample: Sample, kind: str, path: str, cache: FactCache, problems: list[Problem]
) -> Optional[FileFacts]:
    """Read the facts of a file; None if that is not possible, which is a problem."""
    file = 'mask' if kind == 'color' else 'image' if kind == 'bands' else kind
    if not osp.isfile(path):
        problems.append(sample.problem(f'missing {file}', f'{path} does not exist'))
        return None
    try:
        return cache.facts(kind, path)
    except MaskModeError as error:
        problems.append(sample.problem('mask mode', f'{path}: {error}'))
    except Exception as error:  # Pillow raises nearly anything on broken files
        found = f'{path}: {type(error).__name__} {error}'
        problems.append(sample.problem(f'corrupt {file}', found))
    return None


def _describe_ids(path: str, illegal: Sequence[int], rules: LabelRules) -> str:
    if rules.values is not None:
        names = [rules.values.shown(value) for value in illegal]
        return f'{path} has values that `mask_values` does not list: {listed(names, 8)}'
    shown = ', '.join(str(label) for label in illegal[:8]) + (', ...' if len(illegal) > 8 else '')
    shift = ' after reduce_zero_label' if rules.reduce_zero_label else ''
    last = 255 if rules.num_classes is None else rules.num_classes - 1
    return f'{path} has ids {shown}: classes are 0 to {last}{shift}, ignored {rules.ignore_index}'
