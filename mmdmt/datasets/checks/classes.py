"""Classes of whole images: the same numbers in all sets, the network and the checkpoint."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

from mmengine.logging import print_log

from mmdmt.checks import listed
from mmdmt.datasets.checks.file_facts import LabelRules
from mmdmt.datasets.checks.problems import Problem
from mmdmt.datasets.checks.sources import Source, read_sources


def classifies(sources: Sequence[Source]) -> bool:
    """Whether images have a class each, rather than a mask."""
    return any(sample.label is not None for source in sources for sample in source.samples)


def compare_classes(
    train: Sequence[Source], val: Sequence[Source], test: Any, num_classes: Optional[int]
) -> list[Problem]:
    """Find a head of another number of classes, and in classification sets of other classes.

    Those are compared with the first labeled set. Warned of are classes without labeled images, and
    a test set that cannot be read (yet). ``num_classes`` is that of the head, if known.
    """
    labeled = [source for source in train if source.labeled and source.classes]
    if not labeled:
        return []
    if not classifies(labeled):
        return list(_other_head(labeled[0], num_classes, 'model.**.decode_head', 'dataset has'))
    unread: list[Problem] = []
    others = [*labeled[1:], *val, *read_sources(test, unread)]
    for problem in unread:
        print_log(f'test set: {problem.found}', 'current', logging.WARNING)
    file, classes = labeled[0].file, labeled[0].classes
    _warn_of_missing_labels(labeled, classes)
    problems = other_classes(others, classes, f'training ({file})')
    problems += _other_head(labeled[0], num_classes, 'model.head', 'images have')
    return problems


def _other_head(
    source: Source, num_classes: Optional[int], head: str, whose: str
) -> Iterator[Problem]:
    """A head whose number of classes is not that of the data."""
    classes = source.classes
    if num_classes is not None and num_classes != len(classes):
        found = (
            f'`{head}.num_classes` is {num_classes}, but the {whose} {len(classes)} '
            f'classes: {listed(classes)}'
        )
        fix = f'set `num_classes` (of the config, or of {head}) to {len(classes)}'
        yield Problem('number of classes', source.file, None, found, fix)


def other_classes(sources: Sequence[Source], expected: Sequence[str], whose: str) -> list[Problem]:
    """Find labeled sets whose classes, where they name them, are not those expected (``whose``)."""
    return [
        Problem('other classes', source.file, None, _difference(source.classes, expected, whose))
        for source in sources
        if source.labeled and source.classes and source.classes != tuple(expected)
    ]


def _difference(found: Sequence[str], expected: Sequence[str], whose: str) -> str:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if not missing and not extra:
        return f'the classes {listed(found)} are in another order than those of {whose}'
    differences = (('lacks', missing), ('also has', extra))
    parts = [f'{what} {listed(names)}' for what, names in differences if names]
    return f'compared with {whose}, it ' + ' and '.join(parts) + ': classes get wrong numbers'


def _warn_of_missing_labels(sources: Sequence[Source], classes: Sequence[str]) -> None:
    found = {sample.label for source in sources for sample in source.samples}
    missing = [name for number, name in enumerate(classes) if number not in found]
    if missing:
        files = ', '.join(source.file for source in sources)
        message = f'{files}: no labeled image of {listed(missing)}: they will never be predicted'
        print_log(message, 'current', logging.WARNING)


def warn_of_missing_ids(
    masks: Iterable[tuple[Optional[str], LabelRules, Optional[Sequence[int]]]],
    sources: Sequence[Source],
) -> None:
    """Warn of masks without a labeled pixel, and of classes that are in none of the masks.

    Args:
        masks: Path, rules and raw ids of each mask; None for ids that were not read.
        sources: The sources that they are of.
    """
    empty, seen = [], set()
    for path, rules, ids in masks:
        if ids is not None:
            found = {rules.to_class(raw) for raw in ids} - {rules.ignore_index}
            seen |= found
            empty += [] if found else [path]
    if empty:
        text = f'{len(empty)} masks have no labeled pixel at all: {listed(empty)}'
        print_log(text, 'current', logging.WARNING)
    classes = next((source.classes for source in sources if source.labeled), ())
    missing = [name for number, name in enumerate(classes) if number not in seen]
    if seen and missing:
        files = ', '.join(source.file for source in sources if source.labeled)
        text = f'{files}: no labeled pixel of {listed(missing)}: they will never be predicted'
        print_log(text, 'current', logging.WARNING)
