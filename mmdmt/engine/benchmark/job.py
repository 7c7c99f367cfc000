"""One run of a benchmark in a process of its own: ``tools/train.py``, then evaluation."""

import contextlib
import json
import os
import os.path as osp
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from mmengine.config import Config

from mmdmt.checkpoint import find_latest_valid_checkpoint
from mmdmt.config import is_classification
from mmdmt.engine.benchmark.evaluate import FOLDER, evaluate_checkpoint, step_of
from mmdmt.engine.mutual.ledger import Ledger
from mmdmt.engine.mutual.plan import MutualPlan
from mmdmt.files import BusyError, hold, shipped_dir, write_text_atomically

try:
    import resource
except ImportError:  # Windows
    resource = None

STATE = 'benchmark.json'
LOG = 'benchmark.log'
TRAINED = 'trained'  # state of a run that is not evaluated yet
_PATIENCE = 60  # seconds for a process to end whose parent was killed


class Job(NamedTuple):
    """What a process needs to know of a run.

    Attributes:
        work_dir: Work dir of the run, with its config in ``config.py``.
        select_by: Metric of the best checkpoint.
        threads: Of torch.
        environment: Environment variables.
    """

    work_dir: str
    select_by: str
    threads: int
    environment: Dict[str, str]


def read_state(work_dir: str) -> Dict[str, Any]:
    """What is known of a run; empty if it was not begun."""
    path = Path(work_dir, STATE)
    return json.loads(path.read_text()) if path.is_file() else {}


def write_state(work_dir: str, **changes: Any) -> None:
    """Change what is known of a run, atomically; one process at a time does."""
    state = {**read_state(work_dir), **changes}
    write_text_atomically(osp.join(work_dir, STATE), json.dumps(state, indent=1) + '\n')


def run_job(job: Job) -> None:
    """Train, or go on, and evaluate; the target of a process. It prints into ``benchmark.log``."""
    with open(osp.join(job.work_dir, LOG), 'ab', buffering=0) as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.environ.update(job.environment)
    torch.set_num_threads(job.threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _only_job(job.work_dir):
        if read_state(job.work_dir).get('state') != TRAINED:
            begun = time.time()
            _train(job.work_dir)
            _note_cost(job.work_dir, time.time() - begun)
            write_state(job.work_dir, state=TRAINED)
        evaluate_run(job.work_dir, job.select_by)
        write_state(job.work_dir, state='done')


def _end_with_parent() -> None:
    """A benchmark that is killed takes its runs along; they go on with the next one."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM if os.name == 'nt' else signal.SIGKILL)


@contextlib.contextmanager
def _only_job(work_dir: str) -> Iterator[None]:
    """Hold the folder, once a process that lost its parent has let go of it."""
    deadline = time.time() + _PATIENCE
    with contextlib.ExitStack() as held:
        while True:
            lock = hold(osp.join(work_dir, '.job.lock'), work_dir, 'wait until it has ended')
            try:
                held.enter_context(lock)
                break
            except BusyError:
                if time.time() > deadline:
                    raise
                time.sleep(0.2)
        yield


def _train(work_dir: str) -> None:
    tool = shipped_dir('tools') / 'train.py'
    config = osp.join(work_dir, 'config.py')
    before, sys.argv = sys.argv, [str(tool), config, '--work-dir', work_dir, '--resume']
    try:
        runpy.run_path(str(tool), run_name='__main__')
    finally:
        sys.argv = before


def _note_cost(work_dir: str, wall: float) -> None:
    """Add what this process used; ``attempts`` were begun, those without an end are not in it."""
    cost = dict(wall_s=wall)
    if resource is not None:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cost['cpu_s'] = sum(each.ru_utime + each.ru_stime for each in used)
        unit = 1 if sys.platform == 'darwin' else 1024
        cost['memory_gib'] = max(each.ru_maxrss for each in used) * unit / 2**30
    if torch.cuda.is_available():
        cost['gpu_gib'] = torch.cuda.max_memory_allocated() / 2**30
    cost = {name: round(value, 3) for name, value in cost.items()}
    write_state(work_dir, cost=cost)


# --- Evaluation ----------------------------------------------------------------------------------


class Product(NamedTuple):
    """A checkpoint of a finished run that is evaluated.

    Attributes:
        path: The file.
        network: Name of the network in reports; empty for those of an online method.
        row: Whether it is what the method is judged by.
        selected_by: 'last' or 'best'.
        score: Validation metric by which it is the best.
    """

    path: str
    network: str
    row: bool
    selected_by: str
    score: Optional[float] = None


def evaluate_run(work_dir: str, select_by: str) -> None:
    """Evaluate the last and the best checkpoint of a finished run on the test images.

    Of the last one all networks are evaluated, of the best one the one that predicts by default;
    of segmentors also the confidence (:class:`~mmdmt.evaluation.ReliabilityMetric`).
    The row of mutual training is its first member; the others and the ensembles stand beside it.
    """
    for old in Path(work_dir, FOLDER).glob('*.json'):
        old.unlink()
    cfg = Config.fromfile(osp.join(work_dir, 'config.py'))
    found = _chain_products if cfg.get('mutual') else _run_products
    metrics = [] if is_classification(cfg) else [dict(type='mmdmt.ReliabilityMetric')]
    for product in found(work_dir, cfg, select_by):
        selected = 'last' if product.selected_by == 'last' else f'best {select_by} on val'
        facts = dict(selected_by=selected, val_score=product.score, row=product.row)
        stem = Path(product.path).stem
        if product.network:
            facts['network'] = product.network
            stem = f'{Path(product.path).parent.name}.{stem}'
        if product.selected_by == 'best' and stem.startswith('iter'):
            stem = f'best_{stem}'
        evaluate_checkpoint(
            product.path,
            networks='all' if product.selected_by == 'last' else None,
            out_dir=osp.join(work_dir, FOLDER),
            stem=stem,
            facts=facts,
            metrics=metrics,
        )


def _run_products(work_dir: str, cfg: Config, select_by: str) -> Iterator[Product]:
    yield Product(find_latest_valid_checkpoint(work_dir), '', True, 'last')
    best = best_checkpoint([work_dir], select_by)
    if best is not None:
        yield Product(*best[:1], '', True, 'best', best[1])


def _chain_products(work_dir: str, cfg: Config, select_by: str) -> Iterator[Product]:
    ledger = Ledger(work_dir)
    plan = MutualPlan(cfg.mutual.members, cfg.mutual.ratios)
    for index, name in enumerate(plan.member_names):
        stages = [stage.name for stage in plan.stages if stage.member == name]
        last = find_latest_valid_checkpoint(osp.join(work_dir, stages[-1]))  # whatever was selected
        yield Product(last, name, index == 0, 'last')
        best = best_checkpoint([osp.join(work_dir, stage) for stage in stages], select_by)
        if best is not None:
            yield Product(best[0], name, index == 0, 'best', best[1])
    for name in ledger.read():
        if not name.startswith('stage_'):
            yield Product(ledger.checkpoint(name), name, False, 'last')


def best_checkpoint(folders: List[str], metric: str) -> Optional[tuple]:
    """File and score of the best checkpoint on validation in some work dirs.

    Returns:
        tuple[str, float]: None where nothing was validated.
    """
    found = []
    for folder in folders:
        scores = validation_scores(folder, metric)
        for path in sorted(Path(folder).glob('best_*_iter_*.pth')):
            if step_of(path) in scores:
                found.append((str(path), scores[step_of(path)]))
    return max(found, key=lambda each: each[1], default=None)


def validation_scores(folder: str, metric: str) -> Dict[int, float]:
    """Metric of each validation of a run by step, from its logs."""
    scores = {}
    for path in sorted(Path(folder).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            row = json.loads(line) if line.endswith('}') else {}  # the last may be cut
            if metric in row and 'lr' not in row:
                scores[row['step']] = row[metric]
    return scores
