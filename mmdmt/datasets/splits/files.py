"""Lists on disk: one id per line; split lists with a manifest of how they were drawn."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union

from mmdmt.files import write_text_atomically
from mmdmt.version import __version__


class SplitExistsError(FileExistsError):
    """Other lists than the ones to be written are there already."""


def read_list(path: Union[str, Path]) -> list[str]:
    """Read a list file: one id per line, blank lines and surrounding spaces left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an id is in it twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'list file {path} does not exist')
    with open(path, encoding='utf-8-sig') as lines:
        ids = [line.strip() for line in lines if line.strip()]
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise ValueError(f'{path} holds {len(twice)} ids twice, the first is {twice[0]!r}')
    return ids


def write_list(path: Union[str, Path], names: Iterable[str]) -> None:
    """Write one id per line, atomically: a reader sees the old list or the whole new one."""
    write_text_atomically(path, ''.join(f'{name}\n' for name in names))


def describe_list(names: Iterable[str]) -> dict[str, Any]:
    """Return size and sha256 (of the newline-joined ids) of a list, as the manifest holds them."""
    names = list(names)
    return dict(size=len(names), sha256=hashlib.sha256('\n'.join(names).encode()).hexdigest())


def write_splits(
    out_dir: Union[str, Path],
    sets: Mapping[str, Mapping[str, list[str]]],
    facts: Mapping[str, Mapping[str, Any]],
    force: bool = False,
) -> list[Path]:
    """Write ``<set>/<list>.txt`` for every list, add the sets to ``manifest.json``; return paths.

    Sets that the folder holds already stay in the manifest. Nothing is written when anything is
    refused, and the manifest comes last: a list it names is complete.

    Args:
        out_dir (str | Path): Folder; made if missing.
        sets (Mapping): Lists by set and name: ``{'1_8/fold_0': {'labeled': [...], ...}}``.
        facts (Mapping): What else the manifest has of each set: method, seed, parent list, ...
        force (bool): Overwrite lists that differ. Defaults to False.

    Raises:
        SplitExistsError: If a list is there with other content and ``force`` is False.
        ValueError: If the manifest that is there is none.
    """
    out_dir = Path(out_dir)
    files = {
        out_dir / name / f'{kind}.txt': ids
        for name, lists in sets.items()
        for kind, ids in lists.items()
    }
    if not force:
        _refuse_others(files)
    manifest_file = out_dir / 'manifest.json'
    manifest = _read_manifest(manifest_file)
    for path, ids in files.items():
        write_list(path, ids)
    for name, lists in sets.items():
        described = {kind: describe_list(ids) for kind, ids in lists.items()}
        manifest['sets'][name] = dict(facts[name], tool_version=__version__, lists=described)
    write_text_atomically(manifest_file, json.dumps(manifest, indent=1) + '\n')
    return list(files)


def _refuse_others(files: Mapping[Path, list[str]]) -> None:
    there = {path: ids for path, ids in files.items() if path.exists()}
    differing = [path for path, ids in there.items() if path.read_text('utf-8').splitlines() != ids]
    if differing:
        raise SplitExistsError(
            f'{len(differing)} lists exist with other content, the first is {differing[0]}: '
            'choose another folder, or overwrite them with --force (force=True)'
        )


def _read_manifest(path: Path) -> dict:
    if not path.is_file():
        return dict(sets={})
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get('sets'), dict):
        raise ValueError(f'{path} is not a manifest of split lists: move it away')
    return manifest
