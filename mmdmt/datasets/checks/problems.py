"""What can be wrong with a data set, said the same way by the tool and at training start."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

FIXES = {
    'missing list': 'make the list (tools/misc/split_dataset.py) or correct `ann_file`',
    'missing folder': 'correct `data_root` or `data_prefix`, or unpack the data there',
    'unreadable data set': 'correct the data set config: it cannot be built as it is',
    'empty list': 'put at least one id into the list, or take the data set out of the config',
    'odd line': 'write one id a line: no blank lines, no suffix, no columns, UTF-8 without BOM',
    'duplicate id': 'leave each id once in the list',
    'in both lists': 'take the id out of the labeled or out of the unlabeled list',
    'validation overlap': 'take the image out of the training list or out of the validation set',
    'other classes': 'give all sets the same class folders (a class without images may have an '
    'empty one), or the same `metainfo.classes`',
    'number of classes': 'set `num_classes` to the number of classes',
    'missing image': 'restore the image, correct `img_suffix`, or take the id out of the list',
    'missing mask': 'restore the mask, correct `seg_map_suffix`, or move the id to the unlabeled '
    'list',
    'corrupt image': 'fetch the image again, or take its id out of the list',
    'corrupt mask': 'fetch or write the mask again, or move its id to the unlabeled list',
    'mask mode': 'save masks with one channel of class ids (8-bit gray or palette PNG)',
    'mask size': 'make the mask as large as its image (nearest resampling, or fix the pairing)',
    'label id': 'correct the mask, `metainfo.classes`, `reduce_zero_label` or `ignore_index`',
}
"""Kinds of problems and what to do about each, in the order they are reported."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data.

    Attributes:
        kind (str): A key of :data:`FIXES`.
        file (str): The list that names the sample; the image or mask itself where there is no
            list.
        line (int, optional): Line in that list, from 1; None where there is no list.
        found (str): What was found, with the path of the image or mask.
        fix (str): What to do. Defaults to the entry of :data:`FIXES`.
    """

    kind: str
    file: str
    line: Optional[int]
    found: str
    fix: str = field(default='')

    def __post_init__(self) -> None:
        if not self.fix:
            object.__setattr__(self, 'fix', FIXES[self.kind])

    @property
    def where(self) -> str:
        """``file:line``, or just the file."""
        return self.file if self.line is None else f'{self.file}:{self.line}'


class DatasetError(ValueError):
    """Refused data; the message is the table of :func:`format_problems`.

    Attributes:
        problems (list[Problem]): Everything that was found.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)

    def __reduce__(self) -> tuple:
        # Default pickling drops the second argument; loader workers send errors pickled.
        return type(self), (self.args[0], self.problems)


def format_problems(problems: Sequence[Problem], limit: Optional[int] = None) -> str:
    """Lay out problems as a table: what, where, found; below it, how to fix each kind.

    Args:
        problems (Sequence[Problem]): At least one.
        limit (int, optional): Show so many rows, then ``and K more``. Defaults to all.

    Returns:
        str: Lines without a trailing newline.
    """
    ordered = sorted(problems, key=_order)
    shown = ordered if limit is None else ordered[:limit]
    rows = [('problem', 'where', 'found')] + [(p.kind, p.where, p.found) for p in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f'{kind:<{widths[0]}}  {where:<{widths[1]}}  {found}' for kind, where, found in rows]
    lines.insert(1, '-' * max(len(line) for line in lines))
    if len(ordered) > len(shown):
        lines.append(f'... and {len(ordered) - len(shown)} more')
    return '\n'.join([_headline(ordered), '', *lines, '', 'How to fix:', *_fix_lines(ordered)])


def raise_on_problems(problems: Sequence[Problem], limit: Optional[int] = 30) -> None:
    """Raise if there are any problems.

    Args:
        problems (Sequence[Problem]): What a check returned.
        limit (int, optional): Rows of the message. Defaults to 30; ``tools/misc/check_dataset.py``
            prints all of them.

    Raises:
        DatasetError: If there is at least one.
    """
    if problems:
        raise DatasetError(format_problems(problems, limit), problems)


def _order(problem: Problem) -> tuple:
    return list(FIXES).index(problem.kind), problem.file, problem.line or 0, problem.found


def _headline(ordered: Sequence[Problem]) -> str:
    counts = Counter(problem.kind for problem in ordered)
    noun = 'problem' if len(ordered) == 1 else 'problems'
    kinds = ', '.join(f'{kind}: {count}' for kind, count in counts.items())
    return f'{len(ordered)} {noun} in the data ({kinds})'


def _fix_lines(ordered: Sequence[Problem]) -> list[str]:
    fixes = dict.fromkeys((problem.kind, problem.fix) for problem in ordered)
    return [f'  {kind}: {fix}' for kind, fix in fixes]
