"""Masks whose values are no class ids: found over all masks of a source, with what to set."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Optional

from mmdmt.datasets.checks.problems import Problem
from mmdmt.datasets.checks.sources import Source
from mmdmt.datasets.mask_values import IGNORED, SYNTAX, proposed_values

LIMIT = 512  # values beyond which a mask is a picture


class FoundValues:
    """The values of all masks of a source, as numbers and as colors."""

    def __init__(self) -> None:
        self.values: dict[bool, set[int]] = {False: set(), True: set()}
        self.masks = 0

    def add(self, ids: Optional[Sequence[int]], colors: bool) -> None:
        """Add a mask; None for one that was not decoded."""
        if ids is not None:
            self.masks += 1
            known = self.values[colors]
            known.update(ids[: LIMIT + 1 - len(known)])


def explain_values(source: Source, found: FoundValues, problems: list[Problem]) -> list[Problem]:
    """All problems, with those of the values of masks of a source as a whole.

    Where masks of a labeled source have other values than class ids, the line to set is proposed
    as the way to mend it.
    """
    if not source.labeled or not found.masks:
        return problems
    if source.rules.values is not None:
        return [*problems, *_misnamed(source)]
    problems = [*problems, *_hidden_object(source, found)]
    own = {(sample.file, sample.line) for sample in source.samples}
    for colors, kind in ((False, 'label id'), (True, 'mask mode')):
        values = found.values[colors]
        wrong = [p for p in problems if p.kind == kind and (p.file, p.line) in own]
        fix = _fix(source, values, colors) if wrong and values else ''
        if fix:
            problems = [replace(p, fix=fix) if p in wrong else p for p in problems]
    return problems


def _hidden_object(source: Source, found: FoundValues) -> Iterator[Problem]:
    """Masks of 0 and 255, where 255 is the object and would be ignored."""
    rules, values = source.rules, found.values[False]
    unshifted = not rules.reduce_zero_label and not rules.label_map
    two = rules.num_classes in (None, 2) and rules.ignore_index == IGNORED
    if two and unshifted and values == {0, 255} and not found.values[True]:
        text = (
            f'all {found.masks} masks have the values 0 and 255 alone: 255 is ignored, so that '
            f'only {source.classes[0] if source.classes else "class 0"} would be learned'
        )
        yield Problem('mask values', source.file, None, text, _fix(source, values, False))


def _misnamed(source: Source) -> Iterator[Problem]:
    """What contradicts ``mask_values`` in the settings of a dataset."""
    rules, values = source.rules, source.rules.values
    if rules.reduce_zero_label:
        text = '`mask_values` and `reduce_zero_label` are both set'
        fix = 'set reduce_zero_label=False and name the value that is not learned None'
        yield Problem('mask values', source.file, None, text, fix)
    places = rules.label_map or {}
    for index, name in enumerate(values.names):
        number = places.get(index, index)
        known = source.classes[number] if number < len(source.classes) else None
        if source.classes and number != rules.ignore_index and name != known:
            text = (
                f'`mask_values` names class {number} {name!r}, which is {known!r} in '
                f'`metainfo.classes` {list(source.classes)}'
            )
            fix = 'give `mask_values` the same names in the same order'
            yield Problem('mask values', source.file, None, text, fix)
            return


def _fix(source: Source, values: set[int], colors: bool) -> str:
    """How to name values, with the exact line where it can be told; else '' for numbers."""
    line = None
    shifted = source.rules.reduce_zero_label or source.rules.label_map
    if len(values) <= LIMIT and not shifted:
        line = proposed_values(values, colors, source.classes)
    if line is not None:
        value = line.partition(' = ')[2]
        return (
            f'write `{line}` into the config (is this the right order?), or give the tool '
            f'--mask-values "{value}"'
        )
    if not colors:
        return ''
    many = f'more than {LIMIT}' if len(values) > LIMIT else str(len(values))
    return (
        f'the masks have {many} colors, of which each needs the name of its class, or None, in '
        f'`mask_values`, such as {SYNTAX}; masks that were resized with smoothing or saved as JPEG '
        'have to be made again'
    )
