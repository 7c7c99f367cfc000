"""Run a plan of trainings and compare the methods: tables with deviations and intervals.

Usage::

python tools/benchmark.py configs/benchmarks/toy.py --list       # runs and what they cost
python tools/benchmark.py configs/benchmarks/toy.py --quick      # the plan's smaller settings
python tools/benchmark.py PLAN --jobs 4                          # four runs at a time
python tools/benchmark.py PLAN --shard 1/3                       # a third of them, on this machine
python tools/benchmark.py PLAN --summarize                       # the tables of what is there
python tools/benchmark.py PLAN --evaluate                        # finished runs once more

Every run is an ordinary work dir. A benchmark that was killed goes on with the same command.
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import os.path as osp
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from multiprocessing import connection
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
import torch
from mmengine.config import Config, DictAction
from prettytable import PrettyTable, TableStyle

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.datasets.splits.files import read_list, write_list
from mmdmt.engine.benchmark.cost import step_cost
from mmdmt.engine.benchmark.job import LOG, STATE, TRAINED, Job, read_state, run_job, write_state
from mmdmt.engine.benchmark.plan import Plan, Run, identity, lengths_of
from mmdmt.engine.benchmark.results import RELIABILITY, collect
from mmdmt.files import BusyError, hold, shipped_dir, write_text_atomically

LAST_LINES = 12
RELIABILITY_NOTE = (
    'What confidence is worth: the last checkpoint, mean over the runs (docs/reliability.md). '
    'Small is good but for RSS and the IoUs.'
)


class Failure(NamedTuple):
    """A run that did not end well."""

    run: Run
    reason: str


class Benchmark:
    """The runs of a plan in a folder, and their state.

    Args:
        plan: The plan.
        out: Folder.
    """

    def __init__(self, plan: Plan, out: str) -> None:
        self.plan, self.out = plan, osp.abspath(out)
        self.work_dirs = {run: osp.join(self.out, run.name) for run in plan.runs}

    def is_done(self, run: Run) -> bool:
        """Whether a run is trained and evaluated."""
        return read_state(self.work_dirs[run]).get('state') == 'done'

    def trained(self, runs: Sequence[Run]) -> List[Run]:
        """The runs that are trained and not evaluated."""
        return [run for run in runs if read_state(self.work_dirs[run]).get('state') == TRAINED]

    def forget_evaluation(self, runs: Sequence[Run]) -> None:
        """Let finished runs be evaluated again."""
        for run in filter(self.is_done, runs):
            write_state(self.work_dirs[run], state=TRAINED)

    def config(self, run: Run) -> Config:
        """Config of a run."""
        try:
            return self.plan.config(run, self.work_dirs[run])
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise SystemExit(f'{run.name}: {error}') from error

    def facts(self, run: Run, cfg: Config) -> Dict[str, Any]:
        """What is noted of a run before it begins."""
        steps = sum(lengths_of(cfg))
        cost = step_cost(cfg, self.plan.methods[run.method].get('passes'))
        images = [cfg[f'{part}_dataloader'].get('dataset') for part in ('val', 'test')]
        places = [
            {key: dataset.get(key) for key in ('data_root', 'ann_file', 'data_prefix')}
            for dataset in images
        ]
        passes = None if cost is None else round(steps * cost.passes)
        return dict(steps=steps, passes=passes, val_is_test=places[0] == places[1])

    def check(self, run: Run, cfg: Config) -> None:
        """Refuse a work dir that was begun with other settings, or by somebody else.

        Raises:
            ValueError: With the differing keys.
        """
        work_dir = self.work_dirs[run]
        state, new = read_state(work_dir), identity(cfg)
        if not state:
            others = [name for name in _listed(work_dir) if not name.startswith('.')]
            if others:
                raise ValueError(
                    f'{work_dir} holds {others[:3]}, but no {STATE}: it was not made by a '
                    'benchmark. Move it away, or name another folder with --out'
                )
            return
        old = state['identity']
        keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if keys:
            rows = [f'  {key}: {old.get(key)} -> {new.get(key)}' for key in keys[:10]]
            more = f'\n  ... and {len(keys) - 10} more' if len(keys) > 10 else ''
            raise ValueError(
                f'{work_dir} was begun with other settings:\n' + '\n'.join(rows) + more + '\nPut '
                'them back, name another folder with --out, or move this one away'
            )

    def begin(self, run: Run, cfg: Config) -> None:
        """Write config and state of a run, which this process holds."""
        work_dir = self.work_dirs[run]
        self.check(run, cfg)
        if read_state(work_dir).get('state') == TRAINED:
            return
        attempts = read_state(work_dir).get('attempts', 0) + 1
        state = dict(state='running', attempts=attempts, identity=identity(cfg))
        write_state(work_dir, **state, **self.facts(run, cfg))  # first: by it the folder is known
        write_text_atomically(osp.join(work_dir, 'config.py'), cfg.pretty_text)

    def summarize(self) -> Dict[str, Any]:
        """Write ``results.json`` and the tables; returns what the JSON file has."""
        results = collect(self.plan, self.work_dirs)
        folder = Path(self.out)
        write_text_atomically(folder / 'results.json', json.dumps(results, indent=1) + '\n')
        write_text_atomically(folder / 'results.md', markdown(results))
        write_text_atomically(folder / 'results.csv', as_csv(result_lines(results)))
        write_text_atomically(folder / 'per_class.csv', as_csv(class_lines(results)))
        return results


def _listed(folder: str) -> List[str]:
    return sorted(os.listdir(folder)) if osp.isdir(folder) else []


# --- Command line --------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('plan', help='plan file, such as configs/benchmarks/toy.py')
    parser.add_argument(
        '--out', help='folder of everything (default: work_dirs/benchmarks/NAME, with _quick)'
    )
    parser.add_argument('--quick', action='store_true', help='the smaller settings of the plan')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time on this machine')
    parser.add_argument(
        '--shard', type=shard, default=(1, 1), metavar='I/N', help='the I-th of N parts of the runs'
    )
    parser.add_argument(
        '--only', nargs='+', metavar='PATTERN', help="runs by name, such as '*/dmt/seed_0'"
    )
    parser.add_argument('--list', action='store_true', help='print all runs and their cost, exit')
    parser.add_argument(
        '--dry-run', action='store_true', help='print what this command would train, and exit'
    )
    parser.add_argument(
        '--evaluate', action='store_true', help='evaluate finished runs again; nothing is trained'
    )
    parser.add_argument(
        '--summarize', action='store_true', help='write and print the tables of what is there'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override keys of the plan, such as options.data_root=/data/voc',
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error('--jobs must be at least 1')
    return args


def shard(text: str) -> tuple:
    """``2/3`` as (2, 3)."""
    try:
        index, count = map(int, text.split('/'))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f'{text!r} is not I/N with I from 1 to N, such as 1/3')
    return index, count


def chosen_runs(runs: Sequence[Run], args: argparse.Namespace) -> List[Run]:
    """The runs of this shard whose name fits ``--only``."""
    index, count = args.shard
    chosen = list(runs)[index - 1 :: count]
    if args.only is None:
        return chosen
    unknown = [p for p in args.only if not any(fnmatch(run.name, p) for run in runs)]
    if unknown:
        names = '\n  '.join(run.name for run in runs)
        raise SystemExit(f'--only {unknown[0]!r} fits none of the runs:\n  {names}')
    return [run for run in chosen if any(fnmatch(run.name, p) for p in args.only)]


def main() -> None:
    """Do what the command line asks for."""
    args = parse_args()
    try:
        plan = Plan.fromfile(args.plan, args.quick, args.cfg_options)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f'{args.plan}: {error}') from error
    out = args.out or f'work_dirs/benchmarks/{plan.name}{"_quick" * plan.quick}'
    benchmark = Benchmark(plan, out)
    runs = chosen_runs(plan.runs, args)
    if args.list or args.dry_run:
        print(run_table(benchmark, runs if args.dry_run else plan.runs, args.dry_run))
        return
    failures = []
    if args.evaluate:
        runs = [run for run in runs if benchmark.is_done(run)] + benchmark.trained(runs)
    if not args.summarize:
        prepare(plan, benchmark)
        failures = train(benchmark, runs, args.jobs, args.evaluate)
    results = benchmark.summarize()
    if results['rows']:
        print('\n' + markdown(results))
    print(f'{results["finished"]} of {len(plan.runs)} runs are finished; tables in {benchmark.out}')
    if failures:
        raise SystemExit(failure_text(benchmark, failures))


# --- Data ----------------------------------------------------------------------------------------


def prepare(plan: Plan, benchmark: Benchmark) -> None:
    """Paint the scenes of the plan where they are missing, and draw the labels of each seed.

    All seeds have the same scenes; which of them are labeled is another draw for each.
    """
    if not plan.dataset:
        return
    sys.path.insert(0, str(shipped_dir('examples')))
    from toy_scenes import generate

    wanted = plan.dataset['toy_scenes']
    for scenes in wanted if isinstance(wanted, (list, tuple)) else [wanted]:
        settings = dict(scenes)
        root = settings.pop('root')
        with _in_turn(f'{root}.lock'):
            generate(root, **settings)
            draw_labels(plan, root)


def draw_labels(plan: Plan, root: str) -> None:
    """Write the lists of the plan, if it has lists of its own."""
    names = read_list(osp.join(root, 'splits', 'train.txt'))
    for run in {(r.labels, r.fold, r.seed): r for r in plan.runs if plan.lists}.values():
        folder = plan.lists.format(labels=run.labels, fold=run.fold, seed=run.seed)
        draw_lists(osp.join(root, folder), names, int(run.labels), [run.seed, run.fold])


@contextlib.contextmanager
def _in_turn(path: str) -> Any:
    """Hold a lock, waiting for it."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(hold(path, path, 'wait'))
                break
            except BusyError:
                time.sleep(0.5)
        yield


def draw_lists(folder: str, names: Sequence[str], count: int, seed: Sequence[int]) -> None:
    """Write which ``count`` images are labeled, and the others."""
    order = np.random.default_rng(seed).permutation(len(names))
    for kind, part in (('labeled', order[:count]), ('unlabeled', order[count:])):
        path = osp.join(folder, f'{kind}.txt')
        chosen = sorted(names[index] for index in part)
        if not osp.exists(path) or read_list(path) != chosen:
            write_list(path, chosen)


# --- Training ------------------------------------------------------------------------------------


def train(
    benchmark: Benchmark, runs: Sequence[Run], jobs: int, evaluate: bool = False
) -> List[Failure]:
    """Train what is open, ``jobs`` runs at a time; returns what failed.

    With ``evaluate`` what is finished is evaluated again.
    """
    queue = [run for run in runs if evaluate or not benchmark.is_done(run)]
    configs = {run: benchmark.config(run) for run in queue}  # all, before hours go into the first
    for run in runs:
        check = configs.get(run) or benchmark.config(run)
        try:
            benchmark.check(run, check)
        except ValueError as error:
            raise SystemExit(str(error)) from error
    if evaluate:  # now that no run is refused
        benchmark.forget_evaluation(runs)
    trained = benchmark.trained(queue)
    print(f'{len(queue) - len(trained)} of {len(runs)} runs are to be trained in {benchmark.out}')
    if trained:
        print(f'{len(trained)} are trained and have to be evaluated', flush=True)
    workers = Workers(benchmark, jobs, len(queue))
    try:
        while queue or workers.running:
            while queue and workers.has_room:
                run = queue.pop(0)
                workers.start(run, configs[run])
            workers.wait()
    finally:
        workers.end()
    return workers.failures


class Workers:
    """Processes that run a benchmark, each with its part of the machine.

    Args:
        benchmark: Where state and configs are.
        jobs: Processes at a time.
        total: Runs that are to be trained.
    """

    def __init__(self, benchmark: Benchmark, jobs: int, total: int) -> None:
        self.benchmark, self.jobs, self.total = benchmark, jobs, total
        self.count = 0
        self.running: Dict[int, tuple] = {}
        self.failures: List[Failure] = []
        kinds = multiprocessing.get_all_start_methods()
        # A process that has asked for GPUs cannot be forked.
        fork = 'forkserver' in kinds and not torch.cuda.is_available()
        self.context = multiprocessing.get_context('forkserver' if fork else 'spawn')
        if fork:  # import once
            self.context.set_forkserver_preload(['mmdmt', 'mmseg.models', 'mmseg.datasets'])

    @property
    def has_room(self) -> bool:
        """Whether another process may be started."""
        return len(self.running) < self.jobs

    def start(self, run: Run, cfg: Config) -> None:
        """Start a run, unless another benchmark works on it or has finished it."""
        work_dir = self.benchmark.work_dirs[run]
        held = contextlib.ExitStack()
        try:
            lock = osp.join(work_dir, '.benchmark.lock')
            held.enter_context(hold(lock, run.name, 'its results will be taken'))
        except BusyError as error:
            return self._say(run, f'skipped: {error}')
        if self.benchmark.is_done(run):
            held.close()
            return self._say(run, 'was finished by another process')
        self.benchmark.begin(run, cfg)
        slot = min({*range(self.jobs)} - {*self.running})
        job = self._job(work_dir, slot)
        with _environment(job.environment):  # what a spawned process imports with
            process = self.context.Process(target=run_job, args=(job,))
            process.start()
        self.running[slot] = (run, process, held, time.time())
        return None

    def _job(self, work_dir: str, slot: int) -> Job:
        threads = max(1, _cores() // self.jobs)
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        devices = [str(index) for index in range(torch.cuda.device_count())]
        if os.environ.get('CUDA_VISIBLE_DEVICES') and devices:
            devices = os.environ['CUDA_VISIBLE_DEVICES'].split(',')
        if devices:
            environment['CUDA_VISIBLE_DEVICES'] = devices[slot % len(devices)]
        return Job(work_dir, self.benchmark.plan.select_by, threads, environment)

    def wait(self) -> None:
        """Wait until a process ends, and note what became of it."""
        if not self.running:
            return
        connection.wait([process.sentinel for _, process, _, _ in self.running.values()])
        for slot, (run, process, held, begun) in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            held.close()
            del self.running[slot]
            if self.benchmark.is_done(run):
                self._say(run, f'{self._score(run)}, {duration(time.time() - begun)}')
            else:
                if read_state(self.benchmark.work_dirs[run]).get('state') != TRAINED:
                    write_state(self.benchmark.work_dirs[run], state='failed')
                self.failures.append(Failure(run, f'exit code {process.exitcode}'))
                self._say(run, f'FAILED, exit code {process.exitcode}')

    def _score(self, run: Run) -> str:
        plan = self.benchmark.plan
        facts = collect(plan, {run: self.benchmark.work_dirs[run]})['runs'][0]
        value = next(n for n in facts['networks'] if n['row'] and n['selected_by'] == 'last')
        return f'{plan.metric} {_number(value["metrics"][plan.metric], 1)}'

    def _say(self, run: Run, text: str) -> None:
        self.count += 1
        print(f'[{self.count}/{self.total}] {run.name}: {text}', flush=True)

    def end(self) -> None:
        """End what still runs, when the benchmark was interrupted."""
        for _, process, held, _ in self.running.values():
            process.kill()
            process.join()
            held.close()


@contextlib.contextmanager
def _environment(values: Dict[str, str]) -> Any:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def failure_text(benchmark: Benchmark, failures: Sequence[Failure]) -> str:
    """The runs that failed, with the end of their logs."""
    parts = [f'{len(failures)} runs failed:']
    for failure in failures:
        path = Path(benchmark.work_dirs[failure.run], LOG)
        lines = path.read_text(errors='replace').splitlines() if path.is_file() else []
        parts.append(f'\n{failure.run.name} ({failure.reason}), {path}:')
        parts += [f'    {line}' for line in lines[-LAST_LINES:]]
    return '\n'.join(parts)


# --- Lists and tables ----------------------------------------------------------------------------


def run_table(benchmark: Benchmark, runs: Sequence[Run], only_open: bool) -> str:
    """Runs with their cost; times are those of finished runs of the same method."""
    seconds = {}
    for run, work_dir in benchmark.work_dirs.items():
        cost = read_state(work_dir).get('cost')
        if cost and benchmark.is_done(run):
            seconds.setdefault(run.method, []).append(cost['wall_s'])
    shown = [run for run in runs if not (only_open and benchmark.is_done(run))]
    lines, whole = [], 0.0
    for run in shown:
        cfg = benchmark.config(run)
        facts, known = benchmark.facts(run, cfg), seconds.get(run.method)
        expected = sum(known) / len(known) if known else None
        whole += expected or 0
        lines.append(
            {
                'run': run.name,
                'state': read_state(benchmark.work_dirs[run]).get('state', 'open'),
                'steps': ' + '.join(map(str, lengths_of(cfg))),
                'passes': facts['passes'] if facts['passes'] is not None else '?',
                'time': duration(expected) if expected else '?',
            }
        )
    left = [run for run in shown if not benchmark.is_done(run)]
    text = f'{len(shown)} runs, {len(left)} to be trained, in {benchmark.out}'
    if seconds:
        text += f'; {duration(whole)} for those whose time is known'
    return f'{table(lines)}\n{text}' if lines else text


def result_lines(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Rows of the table, flat."""
    lines = []
    for row in results['rows']:
        difference, cost = row['difference'] or {}, row['cost']
        lines.append(
            dict(
                labels=row['labels'],
                method=row['method'],
                checkpoint=row['checkpoint'],
                network=row['network'],
                selected_by=row['selected_by'],
                steps=row['steps'],
                passes=row['passes'],
                runs=len(row['values']),
                mean=row['mean'],
                std=row['std'],
                difference=difference.get('mean'),
                low=difference.get('low'),
                high=difference.get('high'),
                pairs=len(difference.get('values', [])),
                **{name: cost.get(name) for name in ('wall_s', 'cpu_s', 'memory_gib', 'gpu_gib')},
            )
        )
    return lines


def class_lines(results: Dict[str, Any]) -> List[Dict[str, Any]]:
    """A line for each row and class."""
    return [
        dict(
            labels=row['labels'],
            method=row['method'],
            checkpoint=row['checkpoint'],
            **{'class': name},
            mean=value and value['mean'],
            std=value and value['std'],
        )
        for row in results['rows']
        for name, value in zip(results['classes'], row['per_class'])
    ]


def as_csv(lines: Sequence[Dict[str, Any]]) -> str:
    """Lines as CSV."""
    stream = io.StringIO()
    if lines:
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(lines)
    return stream.getvalue()


def markdown(results: Dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [f'# {results["plan"]}{" (quick)" if results["quick"] else ""}']
    (kind,) = results['budget']
    wanted = 'student steps' if kind == 'student_steps' else 'bare passes of images'
    parts.append(
        f'Equally many {wanted} for every method. {results["metric"]} on the test images in '
        'percent, mean ± standard deviation over the runs; difference to '
        f'{results["baseline"]} with the same labels and seed, with the 95 % interval of a '
        'bootstrap over runs and images. Times are of training alone, of runs that were not '
        'interrupted.'
    )
    if any(row['val_is_test'] for row in results['rows']):
        parts.append(
            '**The best checkpoints were selected on the test images**, since the dataset has no '
            'others: compare the last ones.'
        )
    for labels in dict.fromkeys(row['labels'] for row in results['rows']):
        rows = [row for row in results['rows'] if row['labels'] == labels]
        parts += [f'## Labels: {labels}', table(_method_lines(rows, results))]
        reliability = _reliability_lines(rows)
        if reliability:
            parts += ['### Reliability', RELIABILITY_NOTE, table(reliability)]
        parts += ['### Per class', table(_class_columns(rows, results['classes']))]
    return '\n\n'.join(parts) + '\n'


def _method_lines(rows: Sequence[dict], results: Dict[str, Any]) -> List[Dict[str, Any]]:
    lines = []
    best = {row['method']: row for row in rows if row['checkpoint'] == 'best'}
    selected = next((row['selected_by'] for row in best.values()), 'best')
    for row in (row for row in rows if row['checkpoint'] == 'last'):
        other, cost = best.get(row['method']), row['cost']
        memory = 'gpu_gib' if 'gpu_gib' in cost else 'memory_gib'
        lines.append(
            {
                'method': row['method'],
                'network': row['network'],
                'steps': row['steps'],
                'passes': row['passes'],
                'runs': len(row['values']),
                'last': _spread(row),
                'difference': _interval(row),
                selected: _spread(other) if other else '-',
                'its difference': _interval(other) if other else '-',
                'wall': duration(cost.get('wall_s')),
                'CPU': duration(cost.get('cpu_s')),
                'GPU memory' if memory == 'gpu_gib' else 'memory': (
                    f'{cost[memory]:.1f} GiB' if memory in cost else '-'
                ),
            }
        )
    return lines


def _reliability_lines(rows: Sequence[dict]) -> List[Dict[str, Any]]:
    """A line for each method whose last checkpoint was measured."""
    return [
        {
            'method': row['method'],
            **{
                name: _number(row['reliability'].get(name), 1 if 'IoU' in name else 3)
                for name in RELIABILITY
            },
        }
        for row in rows
        if row['checkpoint'] == 'last' and row['reliability']
    ]


def _class_columns(rows: Sequence[dict], classes: Sequence[str]) -> List[Dict[str, Any]]:
    """A line for each class, a column for each method; last checkpoints."""
    last = [row for row in rows if row['checkpoint'] == 'last']
    return [
        {
            'class': name,
            **{
                row['method']: _spread(row['per_class'][index]) if row['per_class'][index] else '-'
                for row in last
            },
        }
        for index, name in enumerate(classes)
    ]


def _spread(row: Dict[str, Any]) -> str:
    return _number(row['mean'], 1) + ('' if row['std'] is None else f' ± {row["std"]:.1f}')


def _interval(row: Dict[str, Any]) -> str:
    found = row['difference']
    if found is None:
        return '-'
    return f'{found["mean"]:+.1f} [{found["low"]:+.1f}, {found["high"]:+.1f}]'


def _number(value: Optional[float], digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def duration(seconds: Optional[float]) -> str:
    """Seconds as text."""
    if seconds is None:
        return '-'
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def table(lines: Sequence[Dict[str, Any]]) -> str:
    """Lines of equal keys as a Markdown table."""
    found = PrettyTable(list(lines[0]) if lines else ['no results'], align='r')
    found.set_style(TableStyle.MARKDOWN)
    for name in ('run', 'method', 'class', 'network', 'state'):
        if lines and name in lines[0]:
            found.align[name] = 'l'
    found.add_rows([list(line.values()) for line in lines])
    return found.get_string()


if __name__ == '__main__':
    main()
