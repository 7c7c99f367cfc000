"""Train on a generated dataset: labels alone, dynamic mutual training, Dual Teacher.

Usage::

python tools/demo.py                # five minutes on two CPU cores
python tools/demo.py --seed 1       # another dataset, other labels, other starting points
python tools/demo.py --quick        # a few steps of each; the numbers mean nothing

Everything goes through ordinary files, configs and runners, as with data of your own. Every student
takes as many steps as the others. Two runs train at a time, each on one core. A second call takes
up what is there; ``--fresh`` starts again. Table, pictures and checkpoints lie in the work dir.
"""

import argparse
import contextlib
import copy
import gc
import io
import json
import multiprocessing
import os
import os.path as osp
import shutil
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.apis import MMSegInferencer
from PIL import Image
from prettytable import PrettyTable, TableStyle
from tqdm import tqdm

from mmdmt.checkpoint import find_latest_valid_checkpoint
from mmdmt.config import resolve_config
from mmdmt.engine.runners import MutualTrainingRunner, SemiRunner
from mmdmt.evaluation.visualization import (
    class_legend,
    colorize_label,
    confidence_heatmap,
    save_image,
    stack_sheets,
    tile_images,
)
from mmdmt.export.segmentor import export_segmentor
from mmdmt.files import shipped_dir, write_text_atomically
from mmdmt.pseudo import PseudoLabelStore

sys.path.insert(0, str(shipped_dir('examples')))
from toy_scenes import generate

# By the name of their folder in the work dir.
CONFIGS = dict(
    labeled_only='supervised/fcn_unet_toy-scenes-96x96.py',
    dmt='dmt/dmt_fcn_unet_toy-scenes-96x96.py',
    online='dual_teacher/dual-teacher-demo_fcn_unet_toy-scenes-96x96.py',
)
TITLES = dict(labeled_only='labeled only', dmt='DMT', online='Dual Teacher')
SCENES = dict(num_train=320, num_val=20, num_test=100, num_labeled=6, style='clear')
QUICK_SCENES = dict(num_train=10, num_val=2, num_test=3, num_labeled=4, style='clear')
SMALL_NETWORK = {
    'backbone.base_channels': 4,
    'decode_head.in_channels': 4,
    'decode_head.channels': 4,
}
QUICK_STAGES = {
    'mutual.supervised.max_iters': 3,
    'mutual.round.max_iters': 2,
    'param_scheduler': [],  # its warm-up is longer than this
}
ZOOM = 2  # pictures are small


class Run(NamedTuple):
    """A training run, or a stage of DMT.

    Attributes:
        name: Name of its score, and in messages.
        method: Key of ``CONFIGS``.
        cfg: What is trained.
        steps: Training steps of this network from the start on.
        stage: Name of the stage of DMT.
        needs: Names of runs that have to be finished before.
        title: In the table.
    """

    name: str
    method: str
    cfg: Config
    steps: int
    title: str
    stage: str = ''
    needs: Tuple[str, ...] = ()


class Row(NamedTuple):
    """A trained network.

    Attributes:
        method: How it was made.
        labels: Labeled images.
        steps: Training steps of this network from the start on.
        miou: Mean IoU on the held-out images, in percent.
        difference: To labeled images alone, where both took as many steps.
    """

    method: str
    labels: int
    steps: int
    miou: float
    difference: Optional[float]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--seed', type=int, default=0, help='of the dataset and of the training (default: 0)'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder of everything written (default: work_dirs/demo, or work_dirs/demo_seed<SEED>)',
    )
    parser.add_argument('--quick', action='store_true', help='a few steps only, to try the command')
    parser.add_argument('--fresh', action='store_true', help='train again what is there already')
    parser.add_argument(
        '--jobs',
        type=int,
        default=min(2, usable_cores()),
        help='runs that train at a time (default: 2, or 1 on a single core); scores are the same',
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: choose 1 or more')
    if args.work_dir is None:
        args.work_dir = Path('work_dirs', f'demo_seed{args.seed}' if args.seed else 'demo')
    return args


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    """Make the data, train in all ways, compare, draw."""
    args = parse_args()
    began = time.time()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that runs are ended, too
    init_default_scope('mmseg')
    context = process_context()
    data_root = generate(
        args.work_dir / 'scenes', seed=args.seed, **(QUICK_SCENES if args.quick else SCENES)
    )
    painted = time.time()
    configs = make_configs(args, data_root)
    for cfg in configs.values():
        keep_or_clear(cfg, args.fresh)
    say(f'Training in {args.work_dir}, {args.jobs} at a time')
    runs = plan(configs)
    train_all(runs, args.jobs, args.work_dir / 'scores', context)
    trained = time.time()
    say('Pictures')
    pictures = draw(args.work_dir, data_root, configs)
    report(args, make_rows(runs, args.work_dir / 'scores'), pictures)
    write_page(args.work_dir, configs)
    print(
        f'The whole demo took {time.time() - began:.0f} s: {painted - began:.0f} s for the scenes, '
        f'{trained - painted:.0f} s for training, the rest for pictures and report.'
    )


def say(text: str) -> None:
    """Print a headline."""
    print(f'\n== {text}', flush=True)


# --- What is trained -----------------------------------------------------------------------------


def make_configs(args: argparse.Namespace, data_root: Path) -> Dict[str, Config]:
    """Configs of the methods for a seed, all with as many steps of each student."""
    folder = shipped_dir('configs')
    configs = {name: Config.fromfile(folder / file) for name, file in CONFIGS.items()}
    for name, cfg in configs.items():
        if args.quick:
            cfg.merge_from_dict(quick_options(cfg))
        cfg.data_root = str(data_root)
        cfg.work_dir = str(args.work_dir / name)
    mutual = configs['dmt'].mutual
    for number, member in enumerate(mutual.members):
        member.seed = args.seed * len(mutual.members) + number
    for name in ('labeled_only', 'online'):
        configs[name].max_iters = mutual.supervised.max_iters + (
            len(mutual.ratios) * mutual.round.max_iters
        )
        configs[name].randomness = dict(seed=mutual.members[0].seed)
    return configs


def quick_options(cfg: Config) -> Dict[str, Any]:
    """Settings of a run of a few steps."""
    prefix = 'model.segmentor.' if 'segmentor' in cfg.model else 'model.'
    options = {prefix + key: value for key, value in SMALL_NETWORK.items()}
    return {**options, **(QUICK_STAGES if 'mutual' in cfg else {})}


def plan(configs: Dict[str, Config]) -> List[Run]:
    """The runs in the order in which they are begun: two at a time then end at about one time.

    The online method takes as long as the first rounds of DMT, and labels alone as the last one.
    """
    online, labeled_only = (
        Run(name, name, configs[name], configs[name].max_iters, TITLES[name])
        for name in ('online', 'labeled_only')
    )
    stages = stages_of(configs['dmt'])
    members = len(configs['dmt'].mutual.members)
    return [online, *stages[:-members], labeled_only, *stages[-members:]]


def stages_of(cfg: Config) -> List[Run]:
    """The stages of DMT."""
    runs, steps = [], {}
    for stage in MutualTrainingRunner.from_cfg(cfg).plan.stages:
        part = cfg.mutual.round if stage.round else cfg.mutual.supervised
        steps[stage.member] = steps.get(stage.member, 0) + part.max_iters
        title = f'DMT round {stage.round}, member {stage.member}'
        if not stage.round:
            title = f'labeled only (DMT round 0, member {stage.member})'
        needs = tuple(stage.needs)
        runs.append(Run(stage.name, 'dmt', cfg, steps[stage.member], title, stage.name, needs))
    return runs


def keep_or_clear(cfg: Config, fresh: bool) -> None:
    """Remove what was trained with other settings, or all if it is asked for."""
    folder = Path(cfg.work_dir)
    record = folder / 'settings.json'
    settings = settings_of(cfg)
    if folder.exists() and (fresh or not record.exists() or record.read_text() != settings):
        print(
            f'{folder} {"is removed" if fresh else "was trained with other settings"}: '
            'starting again'
        )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(record, settings)


def settings_of(cfg: Config) -> str:
    """All that is trained, and on which scenes, as text to compare."""
    manifest = Path(cfg.data_root, 'manifest.json')
    scenes = json.loads(manifest.read_text()) if manifest.exists() else None
    config = resolve_config(copy.deepcopy(cfg)).to_dict()
    return json.dumps(dict(scenes=scenes, config=config), default=str, indent=1)


# --- Training ------------------------------------------------------------------------------------


def train_all(
    runs: Sequence[Run], jobs: int, scores: Path, context: multiprocessing.context.BaseContext
) -> None:
    """Train and score, each run in a process of its own; an error, or Ctrl-C, ends all of them.

    Raises:
        SystemExit: If a run failed; its process has printed why.
    """
    scores.mkdir(exist_ok=True)
    lock = context.RLock()  # of the terminal
    waiting, running, done = list(runs), {}, set()
    try:
        while waiting or running:
            for run in [run for run in waiting if done.issuperset(run.needs)]:
                lanes = sorted(set(range(jobs)) - {lane for _, lane, _ in running.values()})
                if lanes:
                    process = context.Process(
                        target=train_and_score, args=(run, scores, lanes[0], lock), daemon=True
                    )
                    process.start()
                    running[process.sentinel] = run, lanes[0], process
                    waiting.remove(run)
            for sentinel in wait(list(running)):
                run, _, process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    sys.exit(f'{run.name} failed (exit code {process.exitcode}), see above.')
                done.add(run.name)
    finally:
        for _, _, process in running.values():
            process.terminate()
            process.join()


def process_context() -> multiprocessing.context.BaseContext:
    """Processes that need not import everything again, where the system has them.

    The imports begin at once, on another core.
    """
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    from multiprocessing import forkserver  # not on Windows

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmdmt', 'mmseg.models', 'mmseg.datasets', 'mmseg.apis'])
    forkserver.ensure_running()
    return context


def train_and_score(run: Run, scores: Path, lane: int, lock: Any) -> None:
    """Train and test on one core what is not, and write its score; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # mmengine collects garbage for each dataset, among all that was imported
    tqdm.set_lock(lock)
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    cfg = copy.deepcopy(run.cfg)
    cfg.log_level = 'ERROR'
    title = f'{TITLES[run.method]} {run.stage}'.strip()
    cfg.custom_hooks = [dict(type='mmdmt.ProgressBarHook', title=title, position=lane)]
    with contextlib.redirect_stdout(io.StringIO()):  # what runners tell besides the bar
        if run.stage:
            cfg.stage = run.stage
            MutualTrainingRunner.from_cfg(cfg).train()
        elif not osp.exists(checkpoint_of(run.cfg)):
            cfg.resume = find_latest_valid_checkpoint(cfg.work_dir) is not None
            SemiRunner.from_cfg(cfg).train()
    cfg, path = config_of_test(run), scores / f'{run.name}.json'
    trained = os.stat(cfg.load_from).st_mtime_ns
    if not path.exists() or path.stat().st_mtime_ns < trained:
        write_text_atomically(path, json.dumps(dict(miou=test(cfg))))


def checkpoint_of(cfg: Config) -> str:
    """Checkpoint at the end of a run, or of the first member of DMT."""
    if 'mutual' in cfg:
        return next(iter(MutualTrainingRunner.from_cfg(cfg).final_checkpoints().values()))
    return osp.join(cfg.work_dir, f'iter_{cfg.max_iters}.pth')


def config_of_test(run: Run) -> Config:
    """Config that tests the checkpoint of a finished run, which it names in ``load_from``."""
    cfg = copy.deepcopy(run.cfg)
    cfg.load_from = checkpoint_of(cfg) if not run.stage else ''
    if run.stage:
        runner = MutualTrainingRunner.from_cfg(cfg)
        cfg = Config.fromfile(osp.join(runner.work_dir, run.stage, 'config.py'))
        cfg.load_from = runner.ledger.checkpoint(run.stage)
    cfg.experiment_name = f'test_{run.name}_{time.time_ns()}'  # mmengine refuses a name it has seen
    return cfg


def test(cfg: Config) -> float:
    """Mean IoU in percent on the test images."""
    with contextlib.redirect_stdout(io.StringIO()):  # mmengine prints which file it loads
        return float(SemiRunner.from_cfg(cfg).test()['mIoU'])


# --- Scores --------------------------------------------------------------------------------------


def make_rows(runs: Sequence[Run], scores: Path) -> List[Row]:
    """The table, labeled images alone first."""
    found = {
        run.name: json.loads((scores / f'{run.name}.json').read_text())['miou'] for run in runs
    }
    baseline = next(run for run in runs if run.method == 'labeled_only')
    rows = []
    for run in sorted(runs, key=lambda run: list(CONFIGS).index(run.method)):
        labels = len(read_list(run.cfg.data_root, 'labeled'))
        is_compared = run.steps == baseline.steps and run is not baseline
        difference = found[run.name] - found[baseline.name] if is_compared else None
        rows.append(Row(run.title, labels, run.steps, found[run.name], difference))
    return rows


def read_list(data_root: str, name: str) -> List[str]:
    """Ids of a split list."""
    return Path(data_root, 'splits', f'{name}.txt').read_text().split()


# --- Pictures ------------------------------------------------------------------------------------


def draw(work_dir: Path, data_root: Path, configs: Dict[str, Config]) -> List[Path]:
    """Write the contact sheets: predictions, and the pseudo-labels of each round."""
    meta = metainfo(configs['dmt'])
    chain = MutualTrainingRunner.from_cfg(configs['dmt'])
    sheets = dict(
        predictions=draw_predictions(work_dir, data_root, configs),
        pseudo_labels=draw_pseudo_labels(data_root, chain),
    )
    return [
        save_image(
            work_dir / f'{name}.png',
            stack_sheets([class_legend(meta.classes, meta.palette, width=sheet.shape[1]), sheet]),
        )
        for name, sheet in sheets.items()
    ]


def metainfo(cfg: Config) -> ConfigDict:
    """Classes and palette of the scenes."""
    return cfg.test_dataloader.dataset.metainfo


def draw_predictions(work_dir: Path, data_root: Path, configs: Dict[str, Config]) -> np.ndarray:
    """Image, truth, and what mmseg's inferencer predicts with each network, on rich scenes."""
    palette = metainfo(configs['dmt']).palette
    names = richest(data_root, 'test', 6)
    files = [str(data_root / 'img' / 'test' / f'{name}.jpg') for name in names]
    columns = [[read(file) for file in files]]
    columns.append([colorize_label(read_mask(data_root, 'test', name), palette) for name in names])
    for name, cfg in configs.items():
        predicted = predict(checkpoint_of(cfg), work_dir / 'exported' / name, files)
        columns.append([colorize_label(label, palette) for label in predicted])
    titles = ['image', 'ground truth', *(TITLES[name] for name in configs)]
    return tile_images(zoomed([list(row) for row in zip(*columns)]), titles)


def predict(checkpoint: str, folder: Path, files: Sequence[str]) -> List[np.ndarray]:
    """Export a network as a plain mmseg model and label files with mmseg's inferencer."""
    exported = export_segmentor(checkpoint, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        inferencer = MMSegInferencer(str(exported.config), weights=str(exported.checkpoint))
        inferencer.show_progress = False
        samples = inferencer(list(files), return_datasamples=True)
    samples = samples if isinstance(samples, list) else [samples]
    return [sample.pred_sem_seg.data.squeeze(0).cpu().numpy() for sample in samples]


def draw_pseudo_labels(data_root: Path, chain: MutualTrainingRunner) -> np.ndarray:
    """Image, truth, then label and confidence of each round; pixels left out are white."""
    palette = metainfo(chain.cfg).palette
    first = chain.plan.member_names[0]
    stages = [stage for stage in chain.plan.stages if stage.member == first and stage.round]
    stores = [PseudoLabelStore(osp.join(chain.work_dir, s.name, 'pseudo_labels')) for s in stages]
    titles = ['image', 'ground truth']
    for stage in stages:
        titles += [f'round {stage.round}: labels', f'round {stage.round}: confidence']
    rows = []
    for name in richest(data_root, 'unlabeled', 6):
        row = [
            read(data_root / 'img' / 'train' / f'{name}.jpg'),
            colorize_label(read_mask(data_root, 'train', name), palette),
        ]
        for store in stores:
            label, confidence = store.get_thresholded(name)
            row += [colorize_label(label, palette), confidence_heatmap(confidence)]
        rows.append(row)
    return tile_images(zoomed(rows), titles)


def richest(data_root: Path, name: str, count: int) -> List[str]:
    """Ids of a list whose scenes show the most classes: chosen by the truth, not by the result."""
    part = 'train' if name == 'unlabeled' else name
    names = read_list(str(data_root), name)
    names.sort(key=lambda name: -len(np.unique(read_mask(data_root, part, name))))
    return names[:count]


def read(file: Any) -> np.ndarray:
    """Image as an array."""
    with Image.open(file) as image:
        return np.asarray(image)


def read_mask(data_root: Path, part: str, name: str) -> np.ndarray:
    """Ground truth of an image."""
    return read(data_root / 'ann' / part / f'{name}.png')


def zoomed(rows: Sequence[Sequence[np.ndarray]]) -> List[List[np.ndarray]]:
    """Every pixel as a square of ``ZOOM`` pixels."""
    return [[image.repeat(ZOOM, 0).repeat(ZOOM, 1) for image in row] for row in rows]


# --- Report --------------------------------------------------------------------------------------


def report(args: argparse.Namespace, rows: Sequence[Row], pictures: Sequence[Path]) -> None:
    """Print the table, and write it as text and as JSON."""
    text = table(rows)
    write_text_atomically(args.work_dir / 'results.md', text + '\n')
    content: Dict[str, Any] = dict(
        seed=args.seed, quick=args.quick, rows=[row._asdict() for row in rows]
    )
    write_text_atomically(args.work_dir / 'results.json', json.dumps(content, indent=2) + '\n')
    say(f'Results of seed {args.seed}')
    print(text)
    print(f'\n{" and ".join(str(path) for path in pictures)} show them.')


def write_page(work_dir: Path, configs: Dict[str, Config]) -> None:
    """Write curves, scores, rounds and a browser of labels and predictions as one HTML page."""
    try:
        from mmdmt.evaluation.report import write_report
    except ModuleNotFoundError as error:  # jinja2 or matplotlib
        print(f'No report.html: {error.name} is not installed (pip install mmdmt[optional]).')
        return
    runs = [f'{TITLES[name]}={cfg.work_dir}' for name, cfg in configs.items()]
    out = write_report(runs, work_dir / 'report.html', title='The demo')
    print(f'{out} shows the runs in a browser.')


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, aligned for the terminal."""
    titles = ['method', 'labels', 'student steps', 'test mIoU', 'to labeled only, as many steps']
    found = PrettyTable(titles, align='r')
    found.set_style(TableStyle.MARKDOWN)
    found.align['method'] = 'l'
    for row in rows:
        difference = '' if row.difference is None else f'{row.difference:+.1f}'
        found.add_row([*row[:3], f'{row.miou:.1f}', difference])
    return found.get_string()


if __name__ == '__main__':
    main()
