"""Checkpoints that survive a kill and that cannot run code when they are loaded.

A checkpoint is loaded with a short allow-list: tensors, plain Python values, and the few NumPy and
mmengine objects that an mmengine runner puts in its message hub. Whatever needs more is refused,
unless the user names that very file (``trusted_checkpoints`` in the config, ``--trust-checkpoint``
of the tools).
"""

import ast
import contextlib
import logging
import os
import pickle
import re
import types
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

from mmdmt.files import atomic_path

MapLocation = Union[str, torch.device, Callable, None]

# Allow-lists under another name than the object's own, which `getattr` below needs.
_HAS_ALLOW_LIST = digit_version(torch.__version__) >= digit_version('2.6.0')
_CHECKPOINT_NAME = re.compile(r'(?:iter|epoch)_(\d+)\.pth')


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint needs more than the allow-list, and the user has not named it as trusted."""


def _allow_list() -> Dict[str, Any]:
    """Objects beyond torch's own that a checkpoint of an mmengine runner consists of, by name."""
    # What NumPy arrays and scalars of these types are rebuilt from. None of them can call code.
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(kind)) for kind in ('float32', 'float64', 'int32', 'int64', 'bool')}
    items = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    items += [core.multiarray._reconstruct, core.multiarray.scalar]
    named = {f'{item.__module__}.{item.__qualname__}': item for item in items}
    # NumPy 2 renamed numpy.core: files written under either name load under both.
    for name, item in list(named.items()):
        named[name.replace('numpy._core', 'numpy.core')] = item
        named[name.replace('numpy.core', 'numpy._core')] = item
    # mmengine's HistoryBuffer pickles its methods, by way of getattr, which could reach anything.
    named['builtins.getattr'] = _history_statistic
    return named


def _history_statistic(owner: Any, name: str) -> Callable:
    """Stand-in for ``getattr`` that finds the statistics of a ``HistoryBuffer`` only."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr of {name!r}')


def load_checkpoint_file(
    path: Union[str, Path],
    map_location: MapLocation = 'cpu',
    trusted: Sequence[Union[str, Path]] = (),
    mmap: bool = False,
) -> dict:
    """Load a local checkpoint without letting it run code.

    Args:
        path: File written by :func:`torch.save`.
        map_location: As in :func:`torch.load`.
        trusted: Files that may be unpickled without restrictions, by path.
        mmap: Leave the tensors on disk until they are read (a quick look at ``meta``).

    Returns:
        What was saved, usually ``dict(meta, state_dict, ...)``.

    Raises:
        FileNotFoundError: ``path`` is not a file.
        UntrustedCheckpointError: It needs objects beyond the allow-list and is not ``trusted``.
        RuntimeError: The file is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if _is_trusted(path, trusted):
        _warn(f'{path} is loaded without restrictions: it is a trusted checkpoint')
        with _forced_weights_only(False):
            return torch.load(path, map_location=map_location, weights_only=False)
    try:
        return _load_restricted(path, map_location, mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except Exception as error:  # a damaged pickle fails in many ways
        raise RuntimeError(
            f'checkpoint {path} ({path.stat().st_size} bytes) is damaged or not a checkpoint: '
            f'{error}. Use another one, or delete it and resume from the one before.'
        ) from error


def _load_restricted(path: Path, map_location: MapLocation, mmap: bool) -> dict:
    """Load with the allow-list, in the way this torch offers."""
    if not _HAS_ALLOW_LIST:
        return torch.load(
            path, map_location=map_location, pickle_module=_restricted_pickle, weights_only=False
        )
    with _allowed_globals():
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)


def _allowed_globals() -> contextlib.AbstractContextManager:
    """Context in which torch's own safe loading knows the allow-list, where it can."""
    if not _HAS_ALLOW_LIST:
        return contextlib.nullcontext()
    return torch.serialization.safe_globals([(item, name) for name, item in _allow_list().items()])


def _is_trusted(path: Path, trusted: Sequence[Union[str, Path]]) -> bool:
    return any(Path(entry).expanduser().resolve() == path.resolve() for entry in trusted)


def _refusal(path: Path, error: Exception) -> UntrustedCheckpointError:
    """Say which object was refused and how to load the file all the same."""
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    what = f'the object {found.group(1)}' if found else f'more than plain data ({error})'
    return UntrustedCheckpointError(
        f'checkpoint {path} needs {what}, which could run code of whoever made the file, so it is '
        'not loaded. If you trust its source, name it: trusted_checkpoints='
        f"['{path}'] in the config, or --trust-checkpoint {path} on the command line."
    )


# --- torch < 2.6 ---------------------------------------------------------------------------------
# Its weights_only unpickler takes no such list from outside, so the same list is enforced by a
# pickle module of our own. Storages and tensors need a few rebuild functions of torch.

_TORCH_GLOBALS = {
    'builtins.set',
    'collections.OrderedDict',
    'torch.Size',
    'torch.device',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_tensor_v2',
    '_codecs.encode',  # bytes of NumPy arrays; can only encode text
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that finds nothing but the allow-list."""

    def find_class(self, module: str, name: str) -> Any:
        module = 'builtins' if module == '__builtin__' else module  # as Python 2 called it
        full_name = f'{module}.{name}'
        allowed = _allow_list()
        if full_name in allowed:
            return allowed[full_name]
        if full_name in _TORCH_GLOBALS or self._is_tensor_kind(module, name):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full_name}')

    @staticmethod
    def _is_tensor_kind(module: str, name: str) -> bool:
        """Whether it is a storage class or a dtype, which the record of a tensor names."""
        if module not in ('torch', 'torch.storage'):
            return False
        kind = getattr(torch, name, None)
        return isinstance(kind, torch.dtype) or bool(re.fullmatch(r'[A-Za-z0-9]+Storage', name))


_restricted_pickle = types.ModuleType('mmdmt_restricted_pickle')
_restricted_pickle.Unpickler = _RestrictedUnpickler
_restricted_pickle.load = lambda file, **kwargs: _RestrictedUnpickler(file, **kwargs).load()


# --- Loading through mmengine --------------------------------------------------------------------


@contextlib.contextmanager
def _forced_weights_only(force: bool) -> Iterator[None]:
    """Set or clear torch's own switch that turns every ``torch.load`` into a safe one."""
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.pop(name, None)
    if force:
        os.environ[name] = '1'
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def safe_loading(trusted: Sequence[Union[str, Path]] = ()) -> Iterator[None]:
    """Make everything that loads checkpoints through mmengine or torch safe inside the block.

    ``init_cfg=dict(type='Pretrained', ...)`` of a backbone goes through mmengine's
    ``CheckpointLoader``, which unpickles freely (official) or falls back to doing so (maintained).
    Inside the block local files go through :func:`load_checkpoint_file`, and downloads
    (``http``, ``torchvision://``, ``open-mmlab://``) are loaded with ``weights_only=True``.

    Args:
        trusted: Local files that may be unpickled without restrictions.

    Raises:
        UntrustedCheckpointError: Something loaded inside the block needs more than the allow-list.
    """

    # mmengine logs the name of the loader without its first ten characters.
    def load_from_safe_local(filename: str, map_location: MapLocation = None) -> dict:
        return load_checkpoint_file(filename, map_location, trusted)

    stock = CheckpointLoader._schemes['']
    CheckpointLoader.register_scheme('', load_from_safe_local, force=True)
    try:
        with _forced_weights_only(True), _allowed_globals():
            yield
    except pickle.UnpicklingError as error:  # of a download; local files are refused above
        raise UntrustedCheckpointError(
            f'a downloaded checkpoint needs more than plain data ({error}). If you trust its '
            'source, download the file and name it in trusted_checkpoints.'
        ) from error
    finally:
        CheckpointLoader.register_scheme('', stock, force=True)


# --- Writing and finding -------------------------------------------------------------------------


def save_atomically(obj: Any, path: Union[str, Path]) -> None:
    """``torch.save`` that leaves either the complete new file or the old one.

    Args:
        obj: What to save.
        path: The file to write or to replace.
    """
    with atomic_path(path) as temporary:
        torch.save(obj, temporary)


def is_complete(path: Union[str, Path]) -> bool:
    """Whether a file that ``torch.save`` wrote is there in full and undamaged.

    Reads the file once to compare its checksums. Legacy files (torch < 1.6) are no zip archives
    and count as damaged; no mmengine 2.x runner writes them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def find_latest_valid_checkpoint(work_dir: Union[str, Path]) -> Optional[str]:
    """Find the newest checkpoint of a run that can be resumed.

    It is the one that ``last_checkpoint`` names. If that file or the checkpoint is damaged or
    missing, the newest complete ``iter_*.pth`` (``epoch_*.pth``) before it is taken, with a warning
    that says what was passed over.

    Args:
        work_dir: Folder of the run.

    Returns:
        Path of the checkpoint, or None if there is none.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = _read_pointer(pointer)
    if named is not None and is_complete(named):
        return str(named)
    if named is None and pointer.is_file():
        _warn(f'{pointer} is damaged: looking for the newest checkpoint instead')
    for candidate in _candidates(work_dir, named):
        if is_complete(candidate):
            if named is not None:
                _warn(f'{named} is missing or damaged: going on from {candidate}')
            return str(candidate)
        _warn(f'{candidate} is damaged and passed over')
    if named is not None:
        _warn(f'{named} is missing or damaged, and no older checkpoint is complete')
    return None


def _read_pointer(pointer: Path) -> Optional[Path]:
    """The checkpoint that a ``last_checkpoint`` file names, None if it names nothing."""
    if not pointer.is_file():
        return None
    text = pointer.read_text(encoding='utf-8', errors='replace').strip()
    if not text.endswith('.pth'):  # empty, or cut off in the middle
        return None
    # A work dir that was moved or copied holds its own file of that name; the one that the path
    # says may be that of the original, which goes another way from here.
    own = pointer.with_name(Path(text).name)
    return own if own.is_file() or not Path(text).is_file() else Path(text)


def _candidates(work_dir: Path, named: Optional[Path]) -> list[Path]:
    """Numbered checkpoints, newest first, none newer than ``named`` (it may be an older run's)."""
    folders = {work_dir} if named is None else {work_dir, named.parent}
    files = [path for folder in folders for path in folder.glob('*_*.pth') if path != named]
    newest = _step(named) if named is not None else None
    numbered = [path for path in files if _step(path) is not None]
    if newest is not None:
        numbered = [path for path in numbered if _step(path) < newest]
    return sorted(numbered, key=_step, reverse=True)


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _step(path: Path) -> Optional[int]:
    found = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(found.group(1)) if found else None


# --- The config in a checkpoint ------------------------------------------------------------------


def read_stored_config(text: str) -> Config:
    """Read the config that mmengine stores in ``meta['cfg']`` of a checkpoint.

    It is Python text. mmengine's reader executes it, which would undo what loading with
    ``weights_only`` is for. What a runner writes consists of assignments of plain values, so only
    those are read.

    Args:
        text: The text (``Config.pretty_text``).

    Returns:
        The config.

    Raises:
        ValueError: The text holds anything but ``name = value`` with plain values.
    """
    try:
        statements = ast.parse(text).body
        return Config(dict(_assignment(statement) for statement in statements))
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f'the config stored in the checkpoint cannot be read as plain values: {error}. '
            'Name the config file instead.'
        ) from error


def _assignment(statement: ast.stmt) -> tuple:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, _value(statement.value)
    raise ValueError(f'line {statement.lineno} is no assignment to a name')


def _value(node: ast.expr) -> Any:
    """A literal, in which ``dict(key=value)`` and ``dict({...})`` also occur."""
    if isinstance(node, ast.Call):
        return _dict_call(node)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    return ast.literal_eval(node)


def _dict_call(node: ast.Call) -> dict:
    named = all(keyword.arg is not None for keyword in node.keywords)
    if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or not named:
        raise ValueError(f'line {node.lineno} calls something else than dict()')
    result = {}
    for argument in node.args:
        result.update(_value(argument))
    result.update((keyword.arg, _value(keyword.value)) for keyword in node.keywords)
    return result
