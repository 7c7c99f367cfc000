"""The list file of a data set: where it is, what its lines say, what is wrong with them."""

import os.path as osp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from mmengine.utils import is_abs

from mmdmt.datasets.checks.problems import Problem


@dataclass
class ListFile:
    """A list file that was read.

    Attributes:
        path (str): The file.
        lines (dict[str, int]): First line, from 1, of each id.
        problems (list[Problem]): Odd lines, ids given twice, emptiness.
        odd (set[str]): Ids whose line is odd; a missing image there is no second problem.
    """

    path: str
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    odd: set[str] = field(default_factory=set)

    @property
    def ids(self) -> list[str]:
        """The ids of sound lines, each once."""
        return [name for name in self.lines if name not in self.odd]


def setting(leaf: Any, key: str, default: Any = None) -> Any:
    """Read a setting of a data set, be it a config or built."""
    value = leaf.get(key) if isinstance(leaf, Mapping) else getattr(leaf, key, None)
    return default if value is None else value


def joined(leaf: Any, path: str) -> str:
    """Put ``data_root`` in front of a path, as mmengine's ``BaseDataset`` does.

    A built data set has done so already.
    """
    root = setting(leaf, 'data_root', '')
    if isinstance(leaf, Mapping) and root and path and not is_abs(path):
        return osp.join(root, path)
    return path


def folder(leaf: Any, key: str) -> Optional[str]:
    """Folder of a data set by its ``data_prefix`` key; None where it is not set."""
    prefix = setting(leaf, 'data_prefix', {}).get(key)
    if not prefix:
        return None
    return joined(leaf, prefix)


def is_remote(leaf: Any) -> bool:
    """Whether a data set lies in an object store, where files cannot be checked like this."""
    backend = setting(leaf, 'backend_args', {}).get('backend', 'local')
    root = f'{setting(leaf, "data_root", "")}{setting(leaf, "ann_file", "")}'
    return backend != 'local' or '://' in root


def folder_problems(leaf: Any) -> list[Problem]:
    """Report the image or mask folder that does not exist: one problem, not one per image."""
    paths = (folder(leaf, key) for key in ('img_path', 'seg_map_path'))
    return [
        Problem('missing folder', path, None, f'{path} is not a folder')
        for path in paths
        if path is not None and not osp.isdir(path)
    ]


def missing_list_problem(leaf: Any) -> Optional[Problem]:
    """Report an ``ann_file`` that is not a file.

    mmseg lists the whole image folder when ``ann_file`` is a folder, and some data sets do so too
    when it does not exist: training would silently use every image.
    """
    path = joined(leaf, setting(leaf, 'ann_file', ''))
    if not path or osp.isfile(path):
        return None
    what = 'is a folder, not a list' if osp.isdir(path) else 'does not exist'
    return Problem('missing list', path, None, f'ann_file {path} {what}')


def read_list_file(leaf: Any, suffix: Union[str, Sequence[str]] = '') -> Optional[ListFile]:
    """Read the list of a data set; None where it has none or the file is missing.

    Args:
        leaf (BaseDataset | dict): A data set or its config.
        suffix (str | Sequence[str]): Suffix, or several, of the image files, which no id may
            carry. Defaults to the one of ``leaf``; a config may leave it to its class, and then
            it is not known.

    Returns:
        ListFile, optional: First line of every id, and what is wrong with the lines.
    """
    path = joined(leaf, setting(leaf, 'ann_file', ''))
    if not path or not osp.isfile(path):
        return None
    suffix = suffix or setting(leaf, 'img_suffix', ())
    suffixes = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    found = ListFile(path)
    with open(path, encoding='utf-8', errors='replace') as lines:
        for number, line in enumerate(lines, start=1):
            _add_line(found, number, line, suffixes)
    if not any(found.lines):
        found.problems = [Problem('empty list', path, None, 'the list holds no id')]
    return found


def _add_line(found: ListFile, number: int, line: str, suffixes: tuple) -> None:
    name = line.strip()
    oddity = _oddity(name, suffixes)
    if oddity:
        found.problems.append(Problem('odd line', found.path, number, oddity))
        found.odd.add(name)
    elif name in found.lines:
        text = f'{name!r} is on line {found.lines[name]} already'
        found.problems.append(Problem('duplicate id', found.path, number, text))
    found.lines.setdefault(name, number)


def _oddity(name: str, suffixes: tuple) -> Optional[str]:
    if not name:
        return 'blank line'
    if name.startswith('\ufeff'):
        return f'{name!r} starts with a byte order mark'
    if '\ufffd' in name:
        return f'{name!r} is not UTF-8'
    if '\t' in name:
        return f'{name!r} has more than one column'
    carried = next((suffix for suffix in suffixes if suffix and name.endswith(suffix)), None)
    if carried:
        return f'{name!r} carries the suffix {carried!r}, which is added to every id'
    return None
