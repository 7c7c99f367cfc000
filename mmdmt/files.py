"""Files that are never half written or written by two, and where those of this package lie."""

import contextlib
import errno
import glob
import logging
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Union

from mmengine.logging import print_log

try:
    import fcntl
except ImportError:  # Windows: two machines cannot share a work dir there
    fcntl = None

PACKAGE_ROOT = Path(__file__).resolve().parent
_TEMPORARY_MARK = '.partial-'
_MAX_HOST_LENGTH = 32
#: Bytes of the longest name that a file may have here: of the 255 that file systems allow, those of
#: the temporary name (a dot, the mark, the host, a dash and a process of 7 digits) are not left.
MAX_NAME_BYTES = 255 - len(_TEMPORARY_MARK) - _MAX_HOST_LENGTH - 9
_STALE_AGE = 24 * 3600  # seconds; no writer of another machine takes that long for a small file
# What the disk says for itself; other errors have other causes, such as a file that is read.
_REFUSED_BY_DISK = {
    getattr(errno, name, None)
    for name in ('EACCES', 'EPERM', 'EROFS', 'ENOSPC', 'EDQUOT', 'EFBIG', 'ENOTDIR', 'EEXIST')
}


class BusyError(RuntimeError):
    """Another process works on something that belongs to one process at a time."""


@contextlib.contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` when the block ends without an error.

    The temporary file lies in the same folder, which is made if it does not exist, because a
    rename is atomic only within one file system. Its name has the host and the process, because
    machines that share the folder may write the same file. It reaches the disk before the rename,
    so that a power cut cannot leave a complete name on an empty file.

    Raises:
        OSError: The folder cannot be written to, or its disk is full; it names the folder.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}{_TEMPORARY_MARK}{_host()}-{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        own = error.filename in (None, str(temporary), str(path.parent))
        if not own or error.errno not in _REFUSED_BY_DISK:
            raise
        raise _cannot_write(path.parent, error) from error
    except RuntimeError as error:
        if 'inline_container' not in str(error):  # of torch.save; it says nothing about the disk
            raise
        full = OSError(errno.ENOSPC, 'torch.save stopped in the middle; is the disk full?')
        raise _cannot_write(path.parent, full) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text_atomically(path: Union[str, Path], text: str) -> None:
    """Write a small text file that is never seen half written.

    What writers of the same file that were killed have left is removed.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        for other in path.parent.glob(f'.{glob.escape(path.name)}{_TEMPORARY_MARK}*'):
            if other != temporary and _is_stale(other):
                other.unlink(missing_ok=True)
        temporary.write_text(text, encoding='utf-8')


def require_writable(folder: Union[str, Path], setting: str) -> None:
    """Make a folder and try to write to it, before hours of work are lost for want of it.

    Args:
        folder: Folder.
        setting: Where another one can be named, such as ``--work-dir``.

    Raises:
        OSError: It cannot be made or written to; the error names it and the setting.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b'0')
    except OSError as error:
        raise _cannot_write(folder, error, f' ({setting})') from error


def _cannot_write(folder: Union[str, Path], error: OSError, setting: str = '') -> OSError:
    return OSError(
        error.errno,
        f'cannot write into {folder} ({error.strerror}): make the folder writable for this user, '
        f'free space on its disk, or name another folder{setting}',
    )


@contextlib.contextmanager
def hold(path: Union[str, Path], task: str, advice: str) -> Iterator[None]:
    """Hold a lock file for this process; the system lets go of it when the process dies.

    It works between machines, too, where their common file system passes locks on, as NFS does.
    The file stays: to remove it would let two processes lock two files of one name.

    Args:
        path: Lock file. Its folder is made.
        task: What is locked, for the error.
        advice: What to do about it, for the error.

    Raises:
        BusyError: Another process holds it; the error names process and machine.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a+', encoding='utf-8') as file:
        try:
            # Unlike `flock`, it does not pass to loader workers, which may outlive a killed
            # process.
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read() or 'another process'
            raise BusyError(f'{task} is being worked on by {holder}: {advice}') from error
        except OSError as error:
            note = f'{path} cannot be locked ({error.strerror}): see to it that no second run works'
            print_log(f'{note} on {task}', 'current', logging.WARNING)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {platform.node()}')
        file.flush()
        yield


def remove_stale_temporaries(folder: Union[str, Path]) -> list[Path]:
    """Remove and return what writers that were killed left in ``folder``.

    Call it only while nothing else writes to the folder, such as while its lock is held.
    """
    stale = sorted(Path(folder).glob(f'.*{_TEMPORARY_MARK}*'))
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _host() -> str:
    """Name of this machine, as it can stand in a file name."""
    return re.sub(r'[^A-Za-z0-9_-]', '_', platform.node())[:_MAX_HOST_LENGTH]


def _is_stale(temporary: Path) -> bool:
    """Whether the writer of a temporary file has ended; of one on another machine by its age."""
    host, _, process = temporary.name.rpartition(_TEMPORARY_MARK)[2].rpartition('-')
    try:
        if host == _host() and os.name != 'nt':  # Windows would send a signal
            os.kill(int(process), 0)
            return False
        return time.time() - temporary.stat().st_mtime > _STALE_AGE
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # of another user; gone meanwhile; another name
        return False


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
