"""The end of a run: which checkpoint and which network to use, and why."""

import json
import os
import os.path as osp
import shlex
import shutil
from collections.abc import Sequence
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from prettytable import PrettyTable

from mmdmt.config import is_classification
from mmdmt.distributed import unwrap
from mmdmt.files import atomic_path, is_remote, shipped_dir, write_text_atomically
from mmdmt.models.methods.networks import NetworksSegmentor

CHECKPOINT, RECORD = 'final.pth', 'final.json'
#: By which of several metrics a checkpoint or a network is the best, unless the config says it.
MAIN_METRICS = ('mIoU', 'mDice', 'mFscore', 'accuracy/top1')
_SHOWN = 4  # columns of metrics in the table

Metrics = Dict[str, float]
Network = Union[str, Sequence[str]]


class Candidate(NamedTuple):
    """A checkpoint, and what of it predicts.

    Attributes:
        path: The file.
        network: As ``predict_on``; empty where the checkpoint has a single network.
        metrics: On the validation set; empty if that was not measured.
        config: Config file by which the checkpoint can be tested.
    """

    path: str
    network: Network
    metrics: Metrics
    config: str

    def score(self, work_dir: str) -> Dict[str, Any]:
        """Checkpoint, network and metrics, for ``final.json``."""
        finite = {key: value for key, value in self.metrics.items() if np.isfinite(value)}
        return dict(
            checkpoint=osp.relpath(self.path, work_dir), network=self.network, metrics=finite
        )


class ValidationResults(Hook):
    """Keeps the metrics of the last validation, and the iteration at which it was."""

    def __init__(self) -> None:
        self.metrics: Metrics = {}
        self.step: Optional[int] = None

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, Any]] = None) -> None:
        """Take the metrics."""
        self.metrics, self.step = numbers(metrics or {}), runner.iter


def numbers(metrics: Dict[str, Any]) -> Metrics:
    """The metrics that are numbers: a value for each class is a list."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if hasattr(value, '__float__') and np.ndim(value) == 0
    }


def main_metric(metrics: Dict[str, Any]) -> Optional[str]:
    """Name of the metric that decides, also one with a prefix such as ``student/``, or None."""
    for name in MAIN_METRICS:
        found = [key for key in metrics if key == name or key.endswith(f'/{name}')]
        if found:
            return min(found, key=len)
    return None


# --- What is written -----------------------------------------------------------------------------


def forget_final(work_dir: str) -> None:
    """Remove what an earlier run of a work dir ended with: it is not what the next one makes."""
    for name in (RECORD, CHECKPOINT):
        path = osp.join(work_dir, name)
        if osp.lexists(path):
            os.remove(path)


def conclude(
    work_dir: str,
    chosen: Candidate,
    why: str,
    candidates: Sequence[Candidate],
    method: str,
    task: str = 'segmentation',
) -> str:
    """Write ``final.pth`` and, when that is complete, ``final.json`` beside it.

    ``final.pth`` is a hard link to the checkpoint, which takes no room and stays when the
    checkpoint is removed; a copy where the file system has no links.

    Args:
        work_dir: Folder of the run.
        chosen: What to use.
        why: The reason, for people.
        candidates: All that was validated, for the table.
        method: Name, such as 'mean_teacher', 'dmt' or 'supervised'.
        task: 'segmentation' or 'classification'.

    Returns:
        str: The end of the run in words: scores, what to use, and the command that does.
    """
    with atomic_path(osp.join(work_dir, CHECKPOINT)) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(osp.realpath(chosen.path), temporary)
        except OSError:
            shutil.copyfile(chosen.path, temporary)
    score = chosen.score(work_dir)
    record = dict(
        checkpoint=CHECKPOINT,
        network=chosen.network,
        why=why,
        metrics=score['metrics'],
        config=osp.relpath(chosen.config, work_dir),
        method=method,
        task=task,
        source=score['checkpoint'],  # the file that final.pth is
        scores=[each.score(work_dir) for each in candidates],
    )
    write_text_atomically(osp.join(work_dir, RECORD), json.dumps(record, indent=1))
    return '\n'.join(
        [
            'Scores on the validation set:',
            _table(work_dir, candidates),
            f'To use: {osp.join(work_dir, CHECKPOINT)} is {why}.',
            _command(work_dir, task),
        ]
    )


def network_name(network: Network) -> str:
    """A network, or several that predict together, in words."""
    return network if isinstance(network, str) else '+'.join(network)


def _table(work_dir: str, candidates: Sequence[Candidate]) -> str:
    names = dict.fromkeys(key for each in candidates for key in each.metrics)
    shown = sorted(names, key=lambda key: key not in MAIN_METRICS)[:_SHOWN]
    table = PrettyTable(['checkpoint', 'network', *shown], border=False, align='l')
    table.left_padding_width, table.right_padding_width = 0, 2
    for each in candidates:
        scores = [f'{each.metrics[key]:.2f}' if key in each.metrics else '' for key in shown]
        table.add_row([osp.relpath(each.path, work_dir), network_name(each.network), *scores])
    return '\n'.join(line.rstrip() for line in table.get_string().splitlines())


def _command(work_dir: str, task: str) -> str:
    """The command that predicts with the final checkpoint, or makes it ready for that."""
    name, asked = 'predict.py', [work_dir, 'IMAGES']
    if task == 'classification':
        name, asked = 'model_converters/export_classifier.py', [osp.join(work_dir, CHECKPOINT)]
    path = str(shipped_dir('tools') / name)
    near = osp.relpath(path)
    words = ['python', path if near.startswith(os.pardir) else near, *asked, '--out', 'DIR']
    return ' '.join(map(shlex.quote, words))


# --- What is chosen ------------------------------------------------------------------------------


def conclude_run(runner: Runner, results: ValidationResults) -> Optional[str]:
    """Write the ``final`` files of a run that has ended, on rank 0; the report, or None.

    It is the best checkpoint on the validation set where one was kept, else the last one, with the
    network that predicts by default.
    """
    info, model = runner.message_hub.runtime_info, unwrap(runner.model)
    last = info.get('last_ckpt')
    if last is None or is_remote(str(last)) or not osp.isfile(_here(last, runner)):
        return None
    config = osp.join(runner.work_dir, config_name(runner))
    at_end = results.metrics if results.step == runner.iter else {}
    rows = _rows(_here(last, runner), at_end, model, config)
    chosen, why = rows[0], 'the last checkpoint (no best one was kept)'
    key, best = _best(info)
    if best is not None and osp.isfile(_here(best, runner)):
        metrics = (info.get('best_metrics') or {}).get(osp.basename(best))
        metrics = metrics or {key: float(info.get('best_score', np.nan))}
        found = _rows(_here(best, runner), metrics, model, config)
        prefix, _, name = key.rpartition('/')
        chosen = next((row for row in found if row.network == prefix), found[0])
        score = chosen.metrics.get(name if chosen.network == prefix else key, np.nan)
        why = f'the best checkpoint on the validation set, by {key} ({score:.2f})'
        rows = [*found, *rows] if any(row.metrics for row in rows) else found
    if chosen.network:
        why += f'; its network {network_name(chosen.network)} predicts'
        name = key.rpartition('/')[2]
        others = [each for each in rows if each.path == chosen.path and name in each.metrics]
        top = max(others, key=lambda each: each.metrics[name], default=chosen)
        if top.metrics.get(name, 0) > chosen.metrics.get(name, np.inf):
            why += f', though {network_name(top.network)} scored {top.metrics[name]:.2f}'
    task = 'classification' if is_classification(runner.cfg) else 'segmentation'
    return conclude(runner.work_dir, chosen, why, rows, method_of(model), task)


def config_name(runner: Runner) -> str:
    """File name of the config that a runner writes into its work dir; a stage's is config.py."""
    if 'chain' in runner.cfg:
        return 'config.py'
    return osp.basename(runner.cfg.filename or f'{runner.timestamp}.py')


def method_of(model: Any) -> str:
    """Name of the method that a model learns by, as its file is called."""
    online = isinstance(model, NetworksSegmentor)
    return type(model).__module__.rpartition('.')[-1] if online else 'supervised'


def _rows(path: str, metrics: Metrics, model: Any, config: str) -> List[Candidate]:
    """The networks of a checkpoint with their own metrics; first the one that predicts."""
    networks = {network_name(name): name for name in getattr(model, 'network_names', ())}
    default = getattr(model, 'predict_on', '')
    networks[network_name(default)] = default
    own: Dict[str, Metrics] = {}
    for key, value in metrics.items():
        prefix, _, name = key.rpartition('/')
        place, name = (prefix, name) if prefix in networks else (network_name(default), key)
        own.setdefault(place, {})[name] = value
    order = sorted(own, key=lambda name: name != network_name(default))
    rows = [Candidate(path, networks[name], own[name], config) for name in order]
    return rows or [Candidate(path, default, {}, config)]


def _best(info: Dict[str, Any]) -> Tuple[str, Optional[str]]:
    """Metric and file of the best checkpoint; of several metrics the one that decides."""
    paths = {k[len('best_ckpt_') :]: v for k, v in info.items() if k.startswith('best_ckpt_')}
    if info.get('best_ckpt'):
        return str(info.get('best_key', 'score')), str(info['best_ckpt'])
    key = main_metric(paths) or next(iter(paths), '')
    return key, paths.get(key)


def _here(path: str, runner: Runner) -> str:
    """A checkpoint of this run, also where its folder was moved since."""
    own = osp.join(runner.work_dir, osp.basename(path))
    return own if osp.isfile(own) else str(path)
