"""The record of which stages are done, written so that a crash can not damage it."""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Dict, List, Optional, TextIO, Tuple

from mmdmt.engine.mutual.plan import Stage
from mmdmt.files import write_text_atomically
from mmdmt.pseudo.labeler import checkpoint_identity

try:
    import fcntl
except ImportError:  # Windows: two machines can not share a work dir there
    fcntl = None

FILE_NAME = 'stages.json'
VERSION = 1


class LedgerMismatchError(RuntimeError):
    """A stage was begun with another config than the one given now."""


class StageBusyError(RuntimeError):
    """Another process works on the same stage."""


class Ledger:
    """``stages.json``: state, checkpoint, metrics and config of every stage.

    Every change is read-merge-write under a lock with an atomic replace, so that two processes
    that share a round on one file system do not lose each other's entries, and a killed process
    leaves either the old or the new file.

    Args:
        work_dir (str): Folder of the chain.
    """

    def __init__(self, work_dir: str) -> None:
        self.work_dir = work_dir
        self.path = os.path.join(work_dir, FILE_NAME)

    def read(self) -> Dict[str, Dict[str, Any]]:
        """All entries by stage name; empty if nothing was begun.

        Raises:
            RuntimeError: If the file is damaged or of another version.
        """
        if not os.path.exists(self.path):
            return {}
        try:
            with open(self.path, encoding='utf-8') as file:
                content = json.load(file)
            version, stages = content['version'], content['stages']
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f'{self.path} is damaged ({error}): restore it, or move the folder away to start '
                'afresh'
            ) from error
        if version != VERSION:
            raise RuntimeError(f'{self.path} has version {version}, this program writes {VERSION}')
        for name, entry in stages.items():
            self._check_entry(name, entry)
        return stages

    def _check_entry(self, name: str, entry: Any) -> None:
        """Refuse an entry that lacks what a finished, or a begun, stage has."""
        missing = {'state'} - set(entry if isinstance(entry, dict) else ())
        if not missing and entry['state'] == 'done':
            missing = {'checkpoint', 'checkpoint_bytes'} - set(entry)
        if missing:
            raise RuntimeError(
                f'{self.path} is damaged: the entry {name} has no {sorted(missing)}. Restore the '
                'file, or move the folder away to start afresh'
            )

    def entry(self, name: str) -> Dict[str, Any]:
        """Entry of a stage; ``dict(state='pending')`` if it was not begun."""
        return self.read().get(name, dict(state='pending'))

    def is_done(self, name: str) -> bool:
        """Whether a stage is finished and its checkpoint is there in full size."""
        entry = self.entry(name)
        if entry['state'] != 'done':
            return False
        path = os.path.join(self.work_dir, entry['checkpoint'])
        return os.path.exists(path) and os.path.getsize(path) == entry['checkpoint_bytes']

    def checkpoint(self, name: str) -> str:
        """Path of a finished stage's checkpoint.

        Raises:
            RuntimeError: If the stage is not finished or its checkpoint is gone.
        """
        entry = self.entry(name)
        if not self.is_done(name):
            raise RuntimeError(
                f'{name} is {entry["state"]} in {self.path}, or its checkpoint '
                f'{entry.get("checkpoint")} is missing or cut: run that stage first'
            )
        return os.path.join(self.work_dir, entry['checkpoint'])

    def begin(
        self, name: str, config: Dict[str, str], made_from: Optional[Dict[str, str]] = None
    ) -> None:
        """Mark a stage as running.

        Args:
            name (str): Stage.
            config (dict[str, str]): What decides its outcome, flat.
            made_from (dict[str, str], optional): SHA-256 of the checkpoints of the stages that it
                needs, by their names.

        Raises:
            LedgerMismatchError: If it was begun before with other values or from other checkpoints.
        """
        self.check(name, config, made_from)
        self._update(
            name,
            state='running',
            config_sha256=_digest(config),
            config=config,
            made_from=made_from or {},
            begun=self.entry(name).get('begun', _now()),
        )

    def checksums(self, names: List[str]) -> Dict[str, str]:
        """SHA-256 of the checkpoints of finished stages, by stage name."""
        return {name: self.entry(name).get('checkpoint_sha256', '') for name in names}

    def check(
        self, name: str, config: Dict[str, str], made_from: Optional[Dict[str, str]] = None
    ) -> None:
        """Refuse a config, or checkpoints, other than those that a stage was begun with.

        Raises:
            LedgerMismatchError: With the differing keys, old and new value, or the stages.
        """
        entry, made_from = self.entry(name), made_from or {}
        before = entry.get('made_from', {})
        changed = [key for key in before if key in made_from and before[key] != made_from[key]]
        if changed:
            raise LedgerMismatchError(
                f'{name} in {self.work_dir} was made from another checkpoint of {changed} than '
                f'there is now: make it again with --redo {name}, or use another work_dir.'
            )
        self._check_config(name, entry.get('config'), config)

    def _check_config(
        self, name: str, old: Optional[Dict[str, str]], config: Dict[str, str]
    ) -> None:
        if old is None or old == config:
            return
        keys = sorted(key for key in {*old, *config} if old.get(key) != config.get(key))
        rows = [f'  {key}: {old.get(key)} -> {config.get(key)}' for key in keys[:20]]
        more = [f'  and {len(keys) - 20} more'] if len(keys) > 20 else []
        raise LedgerMismatchError(
            f'{name} in {self.work_dir} was begun with another config:\n'
            + '\n'.join(rows + more)
            + f'\nPut the values back, use another work_dir, or make this and all later stages '
            f'again with --redo {name}.'
        )

    def forget(self, name: str) -> None:
        """Remove an entry, so that it can be begun with another config."""
        with self._lock():
            stages = self.read()
            if stages.pop(name, None) is not None:
                self._write(stages)

    def finish(
        self,
        name: str,
        checkpoint: str,
        metrics: Dict[str, float],
        seconds: float,
        **facts: Any,
    ) -> None:
        """Mark a stage as done.

        Args:
            name (str): Stage.
            checkpoint (str): Path of its product.
            metrics (dict[str, float]): Validation metrics of that checkpoint.
            seconds (float): Time the last (possibly resumed) run took.
            **facts: What else the record shall say, JSON values: ``select``, ``selected_from``.
        """
        before = self.entry(name).get('seconds', 0.0)
        self._update(
            name,
            state='done',
            checkpoint=os.path.relpath(checkpoint, self.work_dir),
            checkpoint_bytes=os.path.getsize(checkpoint),
            checkpoint_sha256=checkpoint_identity(checkpoint)['sha256'],
            metrics=metrics,
            seconds=round(before + seconds, 1),
            finished=_now(),
            **facts,
        )

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep a stage for this process; the system lets go of it when the process dies.

        Raises:
            StageBusyError: If another process, here or on another machine that shares the folder,
                has it.
        """
        os.makedirs(self.work_dir, exist_ok=True)
        path = os.path.join(self.work_dir, f'.{name}.lock')
        with open(path, 'a+', encoding='utf-8') as file:
            self._claim(file, name)
            yield

    def _claim(self, file: TextIO, name: str) -> None:
        # Unlike `flock`, it does not pass to loader workers, which may outlive a killed process.
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                raise StageBusyError(
                    f'{name} in {self.work_dir} is being worked on by {file.read() or "another"}: '
                    'wait until it is done, or run another stage with --stage'
                ) from error
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()

    def _update(self, name: str, **fields: Any) -> None:
        with self._lock():
            stages = self.read()
            stages[name] = {**stages.get(name, {}), **fields}
            self._write(stages)

    def _write(self, stages: Dict[str, Dict[str, Any]]) -> None:
        content = dict(version=VERSION, stages=stages)
        write_text_atomically(self.path, json.dumps(content, indent=1))

    @contextlib.contextmanager
    def _lock(self):
        """Hold the ledger's lock file; released by the system if the process dies."""
        os.makedirs(self.work_dir, exist_ok=True)
        with open(self.path + '.lock', 'w', encoding='utf-8') as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def stage_table(
    stages: List[Stage], entries: Dict[str, Dict[str, Any]], metric: str = 'mIoU'
) -> str:
    """A plain-text table of the plan, with the gain of each stage.

    Args:
        stages (list[Stage]): The plan.
        entries (dict[str, dict]): Of :meth:`Ledger.read`. Entries that are no stage, such as the
            ensemble, follow at the end.
        metric (str): Metric to show. ``gain`` is its difference to the member's stage of the
            round before, ``total`` to its round 0.

    Returns:
        str: The table: stage, labels from, ratio, state, metric, gain, total, select, seconds,
        checkpoint.
    """
    names = {stage.name for stage in stages}
    others = [name for name in entries if name not in names and not name.startswith('stage_')]
    titles = ('stage', 'labels from', 'ratio', 'state', metric, 'gain', 'total')
    rows = [(*titles, 'select', 'seconds', 'checkpoint')]
    rows += [_row(stage.name, entries, metric, stage) for stage in stages]
    rows += [_row(name, entries, metric) for name in others]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def _row(
    name: str, entries: Dict[str, Dict[str, Any]], metric: str, stage: Optional[Stage] = None
) -> Tuple[str, ...]:
    """Cells of one line of :func:`stage_table`."""
    entry = entries.get(name, {})
    value, before, first = (
        entries.get(key, {}).get('metrics', {}).get(metric)
        for key in (name, stage and stage.previous, stage and stage.round and stage.first)
    )
    return (
        name,
        '' if stage is None else stage.labeled_by or 'ground truth',
        '' if stage is None or stage.ratio is None else f'{stage.ratio:g}',
        entry.get('state', 'pending'),
        '' if value is None else f'{value:.2f}',
        *('' if None in (value, other) else f'{value - other:+.2f}' for other in (before, first)),
        entry.get('selected_from', entry.get('select', '')),
        f'{entry["seconds"]:.0f}' if 'seconds' in entry else '',
        entry.get('checkpoint', ''),
    )


def _digest(config: Optional[Dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')
