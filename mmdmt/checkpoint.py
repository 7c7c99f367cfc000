"""Checkpoints that survive a kill and that cannot run code when they are loaded.

What is loaded are tensors, plain Python values, and the few NumPy and mmengine objects that a
runner puts in its message hub. A file that needs more is refused, unless the user names it
(``trusted_checkpoints`` in the config, ``--trust-checkpoint`` of the tools).
"""

import ast
import contextlib
import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader

from mmdmt.files import atomic_path

MapLocation = Union[str, torch.device, Callable, None]

_SIGNS = re.compile(r'(?:[-+~]\s*|not\s+){50}')
_CHECKPOINT_NAME = re.compile(r'(?:iter|epoch)_(\d+)\.pth')


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint needs more than the allow-list, and the user has not named it as trusted."""


# --- Loading -------------------------------------------------------------------------------------


def load_checkpoint_file(
    path: Union[str, Path],
    map_location: MapLocation = 'cpu',
    trusted: Sequence[Union[str, Path]] = (),
    mmap: bool = False,
) -> dict:
    """Load a local checkpoint as :func:`torch.load` does, without letting it run code.

    Args:
        path: File written by :func:`torch.save`.
        map_location: As in :func:`torch.load`.
        trusted: Files that may be unpickled without restrictions, by path.
        mmap: Leave the tensors on disk until they are read (a quick look at ``meta``).

    Raises:
        FileNotFoundError: ``path`` is not a file.
        UntrustedCheckpointError: It needs objects beyond the allow-list and is not ``trusted``.
        RuntimeError: The file is damaged, or holds no weights by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = 'is a folder: name a file in it' if path.is_dir() else 'does not exist'
        raise FileNotFoundError(f'checkpoint {path} {what}')
    loaded = _load(path, map_location, trusted, mmap)
    weights = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(weights, dict):
        raise RuntimeError(
            f'checkpoint {path} holds a {type(weights).__name__} where weights by name are expected'
        )
    return loaded


def _load(
    path: Path, map_location: MapLocation, trusted: Sequence[Union[str, Path]], mmap: bool
) -> Any:
    if is_trusted(path, trusted):
        _warn(f'{path} is loaded without restrictions: it is a trusted checkpoint')
        with _forced_weights_only(False):
            return torch.load(path, map_location=map_location, weights_only=False)
    try:
        _extend_allow_list()
        mmap = mmap and zipfile.is_zipfile(path)
        # A string, because torch before 2.2 maps no other path.
        return torch.load(str(path), map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except Exception as error:  # a damaged pickle fails in many ways
        raise RuntimeError(
            f'checkpoint {path} ({path.stat().st_size} bytes) is damaged or not a checkpoint: '
            f'{error}. Use another one, or delete it and resume from the one before.'
        ) from error


def is_trusted(path: Union[str, Path], trusted: Sequence[Union[str, Path]]) -> bool:
    """Whether a file is one of the trusted ones."""
    path = Path(path).expanduser().resolve()
    return any(Path(entry).expanduser().resolve() == path for entry in trusted)


@contextlib.contextmanager
def safe_loading(trusted: Sequence[Union[str, Path]] = ()) -> Iterator[None]:
    """Make everything that loads checkpoints through mmengine or torch safe inside the block.

    ``init_cfg=dict(type='Pretrained', ...)`` of a backbone goes through mmengine's
    ``CheckpointLoader``, which unpickles freely (official) or falls back to doing so (maintained).
    Inside the block local files go through :func:`load_checkpoint_file`, and downloads
    (``http``, ``torchvision://``, ``open-mmlab://``) are loaded with ``weights_only=True``.

    Raises:
        UntrustedCheckpointError: Something loaded inside the block needs more than the allow-list.
    """

    # mmengine logs the name of the loader without its first ten characters.
    def load_from_safe_local(filename: str, map_location: MapLocation = None) -> dict:
        return load_checkpoint_file(filename, map_location, trusted)

    stock = CheckpointLoader._schemes['']
    CheckpointLoader.register_scheme('', load_from_safe_local, force=True)
    _extend_allow_list()
    try:
        with _forced_weights_only(True):
            yield
    except pickle.UnpicklingError as error:  # of a download; local files are refused above
        raise UntrustedCheckpointError(
            f'a downloaded checkpoint needs more than plain data ({error}). If you trust its '
            'source, download the file and name it in trusted_checkpoints.'
        ) from error
    finally:
        CheckpointLoader.register_scheme('', stock, force=True)


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


def _refusal(path: Path, error: Exception) -> UntrustedCheckpointError:
    """Name the object that was refused, and how to load the file anyway."""
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    what = f'the object {found.group(1)}' if found else f'more than plain data ({error})'
    return UntrustedCheckpointError(
        f'checkpoint {path} needs {what}, which could run code of whoever made the file, so it is '
        'not loaded. If you trust its source, name it: trusted_checkpoints='
        f"['{path}'] in the config, or --trust-checkpoint {path} on the command line."
    )


def _history_statistic(owner: Any, name: str) -> Callable:
    """Stand-in for ``getattr``, by which a ``HistoryBuffer`` pickles its statistics."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr of {name!r}')


def _named(function: Callable, name: str) -> Callable:
    """The function under another full name, by which torch finds what a file asks for."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = name.rpartition('.')
    call.__qualname__ = call.__name__
    return call


def _allow_list() -> list:
    """Objects beyond torch's own that a checkpoint of an mmengine runner consists of."""
    # NumPy 1.26 has a `_core` too, without anything in it.
    multiarray = getattr(getattr(np, '_core', None), 'multiarray', None) or np.core.multiarray
    dtypes = {type(np.dtype(kind)) for kind in ('float32', 'float64', 'int32', 'int64', 'bool')}
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    for module in ('numpy.core', 'numpy._core'):  # until and since NumPy 2
        for function in (multiarray._reconstruct, multiarray.scalar):
            allowed.append(_named(function, f'{module}.multiarray.{function.__name__}'))
    # `getattr` itself could reach anything.
    for module in ('builtins', '__builtin__'):
        allowed.append(_named(_history_statistic, f'{module}.getattr'))
    return allowed


_ALLOWED = _allow_list()


def _extend_allow_list() -> None:
    """Tell torch; before every load, because the maintained mmengine takes its own list back."""
    if hasattr(torch.serialization, 'add_safe_globals'):  # torch >= 2.4
        torch.serialization.add_safe_globals(_ALLOWED)


def check_resumable(checkpoint: dict, path: Union[str, Path], model: Any = None) -> None:
    """Refuse to resume from a file that has no more than weights, or that is of another method.

    Args:
        checkpoint: What the file holds.
        path: The file, for the message.
        model: Config of the model that is to go on. Methods share the names of their networks, so
            that weights of another one may fit; the type in the stored config tells them apart.

    Raises:
        ValueError: The state of the optimizer or the number of iterations is not in it, or it was
            trained with another type of model.
    """
    meta = checkpoint.get('meta') or {}
    lacking = [name for name in ('epoch', 'iter') if name not in meta]
    lacking += [] if 'optimizer' in checkpoint else ['the state of the optimizer']
    start = f"To start a run with these weights, set load_from='{path}' and leave resume out."
    if lacking:
        raise ValueError(
            f'{path} holds weights only, so a run cannot be resumed from it: it lacks '
            f'{", ".join(lacking)}. {start}'
        )
    try:
        trained = _type_name(read_stored_config(meta.get('cfg')).get('model'))
    except ValueError:  # no text, or one of another program
        return
    if trained and _type_name(model) not in ('', trained):
        raise ValueError(
            f'{path} was trained with a {trained}, but the model of this config is a '
            f'{_type_name(model)}, so the run cannot be resumed from it. {start}'
        )


def _type_name(model: Any) -> str:
    """The type in a model's config without its scope; empty if there is none."""
    kind = model.get('type') if isinstance(model, dict) else None
    return kind.split('.')[-1] if isinstance(kind, str) else ''


# --- Writing and finding -------------------------------------------------------------------------


def save_atomically(obj: Any, path: Union[str, Path]) -> None:
    """``torch.save`` that leaves either the complete new file or the old one."""
    with atomic_path(path) as temporary:
        torch.save(obj, temporary)


def checkpoint_identity(path: Union[str, Path]) -> dict:
    """Identity of a checkpoint: file name, size and SHA-256 of the content."""
    path, digest = Path(path), hashlib.sha256()
    with path.open('rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return dict(file=path.name, bytes=path.stat().st_size, sha256=digest.hexdigest())


def is_complete(path: Union[str, Path]) -> bool:
    """Whether a file that ``torch.save`` wrote is there in full and undamaged.

    Compares its checksums. Legacy files (torch < 1.6), which are no zip archives, count as damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def find_latest_valid_checkpoint(work_dir: Union[str, Path]) -> Optional[str]:
    """Find the newest checkpoint of a run that can be resumed, None if there is none.

    It is the one that ``last_checkpoint`` names. If that file or the checkpoint is damaged or
    missing, the newest complete ``iter_*.pth`` (``epoch_*.pth``) before it is taken, with a warning
    that names what was passed over.
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
    # A work dir that was moved or copied holds its own file of that name; the path may still be
    # that of the original, whose training goes on differently.
    own = pointer.with_name(Path(text).name)
    return own if own.is_file() or not Path(text).is_file() else Path(text)


def _candidates(work_dir: Path, named: Optional[Path]) -> list[Path]:
    """Numbered checkpoints, newest first, none newer than ``named`` (it may be an older run's)."""
    folders = {work_dir} if named is None else {work_dir, named.parent}
    steps = {path: _step(path) for folder in folders for path in folder.glob('*_*.pth')}
    newest = None if named is None else _step(named)
    older = [
        path
        for path, step in steps.items()
        if step is not None and path != named and (newest is None or step < newest)
    ]
    return sorted(older, key=steps.get, reverse=True)


def _step(path: Path) -> Optional[int]:
    found = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(found.group(1)) if found else None


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


# --- The config in a checkpoint ------------------------------------------------------------------


def read_stored_config(text: str) -> Config:
    """Read the config text that mmengine stores in ``meta['cfg']`` of a checkpoint.

    mmengine's reader executes it, which would undo what loading with ``weights_only`` is for. What
    the values ask for has to be checked before anything is built from them: see
    :func:`mmdmt.export.stored_types.check_stored_config`.

    Raises:
        ValueError: The text holds anything but ``name = value`` with plain values.
    """
    try:
        if _SIGNS.search(text):  # Python 3.9 would crash
            raise ValueError('too many signs in a row')
        return Config(dict(_assignment(statement) for statement in ast.parse(text).body))
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(
            f'the config stored in the checkpoint cannot be read as plain values: {error}. '
            'Name the config file instead.'
        ) from error


def _assignment(statement: ast.stmt) -> tuple:
    targets = getattr(statement, 'targets', [])
    if not isinstance(statement, ast.Assign) or [type(target) for target in targets] != [ast.Name]:
        raise ValueError(f'line {statement.lineno} is no assignment to a name')
    return targets[0].id, ast.literal_eval(_Literals().visit(statement.value))


class _Literals(ast.NodeTransformer):
    """Writes ``dict(key=value)``, ``dict({...})`` and ``inf`` as literals."""

    def visit_Call(self, node: ast.Call) -> ast.Dict:
        self.generic_visit(node)
        given = [argument for argument in node.args if isinstance(argument, ast.Dict)]
        named = all(keyword.arg is not None for keyword in node.keywords)
        if getattr(node.func, 'id', None) != 'dict' or given != node.args or not named:
            raise ValueError(f'line {node.lineno} calls something else than dict()')
        keys = [key for argument in given for key in argument.keys]
        values = [value for argument in given for value in argument.values]
        keys += [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, values + [keyword.value for keyword in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node
