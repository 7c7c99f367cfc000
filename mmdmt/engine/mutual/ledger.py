"""The record of which stages are done, written so that a crash cannot damage it."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, ContextManager, Dict, List, Optional

from prettytable import PrettyTable

from mmdmt.checkpoint import checkpoint_identity
from mmdmt.checks import listed
from mmdmt.engine.mutual.plan import Stage
from mmdmt.files import hold, write_text_atomically

try:
    import fcntl
except ImportError:  # Windows: two machines cannot share a work dir there
    fcntl = None

FILE_NAME = 'stages.json'
VERSION = 1
_MAX_DIFFERENCES = 20
_OF_DONE = {'checkpoint', 'checkpoint_bytes'}

Entry = Dict[str, Any]


class LedgerMismatchError(RuntimeError):
    """A stage was begun with another config than the one given now."""


class Ledger:
    """``stages.json``: state, checkpoint, metrics and config of every stage.

    Every change is read-merge-write under a lock with an atomic replace: two processes that share
    a round do not lose each other's entries, and a killed one leaves the old or the new file.

    Args:
        work_dir (str): Folder of the chain.
    """

    def __init__(self, work_dir: str) -> None:
        self.work_dir = work_dir
        self.path = os.path.join(work_dir, FILE_NAME)

    def read(self) -> Dict[str, Entry]:
        """All entries by stage name; empty if nothing was begun. A damaged file is an error."""
        if not os.path.exists(self.path):
            return {}
        try:
            with open(self.path, encoding='utf-8') as file:
                content = json.load(file)
            version, stages = content['version'], content['stages']
            if version != VERSION:
                raise ValueError(f'version {version}, this program writes {VERSION}')
            for name, entry in stages.items():
                if entry['state'] == 'done' and not entry.keys() >= _OF_DONE:
                    raise KeyError(f'the entry {name} has no {sorted(_OF_DONE - entry.keys())}')
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f'{self.path} is damaged ({error}): restore it, or move the folder away to start '
                'afresh'
            ) from error
        return stages

    def entry(self, name: str) -> Entry:
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
        """Path of a finished stage's checkpoint; others raise ``RuntimeError``."""
        entry = self.entry(name)
        if not self.is_done(name):
            raise RuntimeError(
                f'{name} is {entry["state"]} in {self.path}, or its checkpoint '
                f'{entry.get("checkpoint")} is missing or cut: run that stage first'
            )
        return os.path.join(self.work_dir, entry['checkpoint'])

    def checksums(self, names: List[str]) -> Dict[str, str]:
        """SHA-256 of the checkpoints of finished stages, by stage name."""
        return {name: self.entry(name).get('checkpoint_sha256', '') for name in names}

    def check(
        self, name: str, config: Dict[str, str], made_from: Optional[Dict[str, str]] = None
    ) -> None:
        """Refuse a config, or checkpoints, other than those that a stage was begun with.

        Args:
            name (str): Stage.
            config (dict[str, str]): What decides its outcome, flat.
            made_from (dict[str, str], optional): :meth:`checksums` of the stages it needs.

        Raises:
            LedgerMismatchError: With the differing keys, old and new value, or the stages.
        """
        entry, made_from = self.entry(name), made_from or {}
        before, old = entry.get('made_from', {}), entry.get('config', config)
        changed = [key for key in before if key in made_from and before[key] != made_from[key]]
        if changed:
            raise LedgerMismatchError(
                f'{name} in {self.work_dir} was made from another checkpoint of {changed} than '
                f'there is now: make it again with --redo {name}, or use another work_dir.'
            )
        keys = sorted(key for key in {*old, *config} if old.get(key) != config.get(key))
        if keys:
            rows = [f'  {k}: {old.get(k)} -> {config.get(k)}' for k in keys]
            raise LedgerMismatchError(
                f'{name} in {self.work_dir} was begun with another config:\n'
                + listed(rows, _MAX_DIFFERENCES, lines=True)
                + '\nPut the values back, use another work_dir, or make this and all later stages '
                f'again with --redo {name}.'
            )

    def begin(
        self, name: str, config: Dict[str, str], made_from: Optional[Dict[str, str]] = None
    ) -> None:
        """Mark a stage as running, after :meth:`check`."""
        self.check(name, config, made_from)
        self._note(
            name,
            state='running',
            config=config,
            made_from=made_from or {},
            begun=self.entry(name).get('begun', _now()),
        )

    def finish(
        self, name: str, checkpoint: str, metrics: Dict[str, float], seconds: float, **facts: Any
    ) -> None:
        """Mark a stage as done.

        Args:
            name (str): Stage.
            checkpoint (str): Path of its product.
            metrics (dict[str, float]): Validation metrics of that checkpoint.
            seconds (float): Time of this run, which may have been resumed.
            **facts: JSON values: ``select``, ``selected_from``.
        """
        identity = checkpoint_identity(checkpoint)
        self._note(
            name,
            state='done',
            checkpoint=os.path.relpath(checkpoint, self.work_dir),
            checkpoint_bytes=identity['bytes'],
            checkpoint_sha256=identity['sha256'],
            metrics=metrics,
            seconds=round(self.entry(name).get('seconds', 0.0) + seconds, 1),
            finished=_now(),
            **facts,
        )

    def forget(self, name: str) -> None:
        """Remove an entry, so that it can be begun with another config."""
        with self._change() as stages:
            stages.pop(name, None)

    def hold(self, name: str) -> ContextManager[None]:
        """Keep a stage for this process, see :func:`mmdmt.files.hold`.

        Raises:
            BusyError: On entering, where another process has it, also on another machine.
        """
        return hold(
            os.path.join(self.work_dir, f'.{name}.lock'),
            f'{name} in {self.work_dir}',
            'wait until it is done, or run another stage with --stage',
        )

    def _note(self, name: str, **fields: Any) -> None:
        with self._change() as stages:
            stages[name] = {**stages.get(name, {}), **fields}

    @contextlib.contextmanager
    def _change(self) -> Iterator[Dict[str, Entry]]:
        """Read, let the block change and write the entries under a lock.

        The system releases it if the process dies.
        """
        os.makedirs(self.work_dir, exist_ok=True)
        with open(self.path + '.lock', 'w', encoding='utf-8') as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            stages = self.read()
            yield stages
            content = dict(version=VERSION, stages=stages)
            write_text_atomically(self.path, json.dumps(content, indent=1))


def stage_table(stages: List[Stage], entries: Dict[str, Entry], metric: str = 'mIoU') -> str:
    """A plain-text table of the plan, with the gain of each stage.

    Args:
        stages (list[Stage]): The plan.
        entries (dict[str, dict]): Of :meth:`Ledger.read`. Entries that are no stage, such as the
            ensemble, follow at the end.
        metric (str): Metric to show. ``gain`` is its difference to the member's stage of the
            round before, ``total`` to its round 0.
    """
    titles = ('stage', 'labels from', 'ratio', 'state', metric, 'gain', 'total', 'select')
    table = PrettyTable([*titles, 'seconds', 'checkpoint'], border=False, align='l')
    table.left_padding_width, table.right_padding_width = 0, 2
    for stage in stages:
        labels = (stage.labeled_by or 'ground truth', f'{stage.ratio:g}' if stage.round else '')
        first = Stage(0, stage.member).name if stage.round else None
        scores = [
            entries.get(name, {}).get('metrics', {}).get(metric)
            for name in (stage.name, stage.previous, first)
        ]
        gains = ['' if None in (scores[0], x) else f'{scores[0] - x:+.2f}' for x in scores[1:]]
        table.add_row(_row(stage.name, entries.get(stage.name, {}), metric, labels, gains))
    for name in [name for name in entries if not name.startswith('stage_')]:
        table.add_row(_row(name, entries[name], metric, ('', ''), ('', '')))
    return '\n'.join(line.rstrip() for line in table.get_string().splitlines())


def _row(
    name: str, entry: Entry, metric: str, labels: Sequence[str], gains: Sequence[str]
) -> List[str]:
    score = entry.get('metrics', {}).get(metric)
    facts = [entry.get('state', 'pending'), '' if score is None else f'{score:.2f}', *gains]
    facts.append(entry.get('selected_from', entry.get('select', '')))
    seconds = f'{entry["seconds"]:.0f}' if 'seconds' in entry else ''
    return [name, *labels, *facts, seconds, entry.get('checkpoint', '')]


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')
