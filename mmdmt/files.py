"""Files that are never half written, and where those of this installation lie."""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Union

PACKAGE_ROOT = Path(__file__).resolve().parent
_TEMPORARY_MARK = '.partial-'
_MAX_HOST_LENGTH = 32
#: Bytes of the longest name that a file may have here: of the 255 that file systems allow, those of
#: the temporary name (a dot, the mark, the host, a dash and a process of 7 digits) are not left.
MAX_NAME_BYTES = 255 - len(_TEMPORARY_MARK) - _MAX_HOST_LENGTH - 9


@contextlib.contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` when the block ends without an error.

    The temporary file lies in the same folder, which is made if it does not exist, because a
    rename is atomic only within one file system. Its name has the host and the process, because
    machines that share the folder may write the same file. It reaches the disk before the rename,
    so that a power cut cannot leave a complete name on an empty file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}{_TEMPORARY_MARK}{_host()}-{os.getpid()}')
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Union[str, Path], text: str) -> None:
    """Write a small text file that is never seen half written."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def remove_stale_temporaries(folder: Union[str, Path]) -> list[Path]:
    """Remove and return what writers that were killed left in ``folder``.

    Call it only while nothing else writes to the folder.
    """
    stale = sorted(Path(folder).glob(f'.*{_TEMPORARY_MARK}*'))
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _host() -> str:
    """Name of this machine, as it can stand in a file name."""
    return re.sub(r'[^A-Za-z0-9_-]', '_', platform.node())[:_MAX_HOST_LENGTH]


def _sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    if path.is_dir() and os.name == 'nt':  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shipped_dir(name: str) -> Path:
    """Folder ``configs``, ``tools`` or ``examples`` of this installation or source tree.

    The folder beside the package counts only with our ``setup.py`` there: in ``site-packages``
    a folder called ``tools`` belongs to somebody else.

    Raises:
        FileNotFoundError: If the package was copied without it.
    """
    installed = PACKAGE_ROOT / '.mim' / name
    if installed.is_dir():
        return installed.resolve()
    source = PACKAGE_ROOT.parent
    if (source / 'setup.py').is_file() and (source / name).is_dir():
        return source / name
    raise FileNotFoundError(
        f'no {name} in {installed.parent} nor in a source tree at {source}: '
        'install mmdmt with `pip install .` or `pip install -e .`'
    )


def is_remote(path: str) -> bool:
    """Whether a path is an address, such as ``http://``, ``s3://`` or ``torchvision://``."""
    return re.match(r'[\w:-]+://', path) is not None
