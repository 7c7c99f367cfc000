"""What can be wrong with a dataset; the tool and training report it alike."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from prettytable import PrettyTable

from mmdmt.checks import listed

FIXES = {
    'missing list': 'make the list (tools/misc/split_dataset.py) or correct `ann_file`',
    'missing folder': 'correct `data_root` or `data_prefix`, or unpack the data there',
    'unreadable dataset': 'correct the dataset config: it cannot be built as it is',
    'empty list': 'put at least one id into the list, or take the dataset out of the config',
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
    'image mode': 'convert it to RGB or gray of 8 bits a channel, such as by '
    '"magick IMAGE -colorspace sRGB -alpha off -depth 8 PNG24:NEW.png", or load it by a step of '
    "your own that keeps it (color_type='unchanged')",
    'image size': 'take its id out of the list: a side needs at least 2 pixels, and 1/50 of the '
    'other one',
    'mask mode': 'save masks with one channel of class ids (8-bit gray or palette PNG), or name '
    'their colors by `mask_values` (docs/images.md)',
    'mask size': 'make the mask as large as its image (nearest resampling, or fix the pairing)',
    'mask values': 'name the values of the masks: `mask_values`',
    'label id': 'correct the mask, `metainfo.classes`, `reduce_zero_label` or `ignore_index`, or '
    'name the values that masks have by `mask_values` (docs/images.md)',
}
"""Kinds of problems and what to do about each, in the order they are reported."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data.

    Attributes:
        kind (str): A key of :data:`FIXES`.
        file (str): The list that names the sample; without one, the image or mask itself.
        line (int, optional): Line in that list, from 1.
        found (str): What was found, with the path of the image or mask.
        fix (str): What to do. Defaults to the entry of :data:`FIXES`.
    """

    kind: str
    file: str
    line: Optional[int]
    found: str
    fix: str = ''

    def __post_init__(self) -> None:
        if not self.fix:
            object.__setattr__(self, 'fix', FIXES[self.kind])

    @property
    def where(self) -> str:
        """``file:line``, or just the file."""
        return self.file if self.line is None else f'{self.file}:{self.line}'


class DatasetError(ValueError):
    """Refused data: a table of :func:`format_problems`, and all ``problems`` as an attribute."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)

    def __reduce__(self) -> tuple:
        # Default pickling drops the second argument; loader workers send errors pickled.
        return type(self), (self.args[0], self.problems)


def format_problems(problems: Sequence[Problem], limit: Optional[int] = None) -> str:
    """Lay out problems as a table: what, where, found; below it, how to fix each kind.

    With a ``limit``, the table has so many rows, and then ``... and K more``.
    """
    kinds = list(FIXES)
    ordered = sorted(problems, key=lambda p: (kinds.index(p.kind), p.file, p.line or 0, p.found))
    table = PrettyTable(['problem', 'where', 'found'], align='l', border=False)
    table.add_rows([[p.kind, p.where, p.found] for p in ordered])
    titles, *rows = [line.strip() for line in str(table).splitlines()]
    fixes = dict.fromkeys(f'  {problem.kind}: {problem.fix}' for problem in ordered)
    counts = Counter(problem.kind for problem in ordered)
    by_kind = ', '.join(f'{kind}: {count}' for kind, count in counts.items())
    headline = f'{len(ordered)} problem{"s" * (len(ordered) > 1)} in the data ({by_kind})'
    return '\n'.join(
        [headline, '', titles, listed(rows, limit, lines=True), '', 'How to fix:', *fixes]
    )


def raise_on_problems(problems: Sequence[Problem], limit: Optional[int] = 30) -> None:
    """Raise :class:`DatasetError` if there are any problems, with ``limit`` rows in its table."""
    if problems:
        raise DatasetError(format_problems(problems, limit), problems)
