"""Train on a generated dataset: labeled images alone against dynamic mutual training (DMT).

Usage::

python tools/demo.py                # five minutes on two CPU cores
python tools/demo.py --seed 1       # another dataset, other labels, other starting points
python tools/demo.py --quick        # seconds; the numbers mean nothing

Everything goes through ordinary files, configs and runners, as with data of your own. A second
run takes up what is there; ``--fresh`` starts again. Table and pictures lie in the work dir.
"""

import argparse
import contextlib
import copy
import io
import json
import os.path as osp
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.apis import MMSegInferencer
from PIL import Image
from prettytable import PrettyTable, TableStyle

from mmdmt.engine.mutual import LedgerMismatchError
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
from mmdmt.files import shipped_dir
from mmdmt.pseudo import PseudoLabelStore

sys.path.insert(0, str(shipped_dir('examples')))
from toy_scenes import generate

CONFIG = 'dmt/dmt_fcn_unet_toy-scenes-96x96.py'
SCENES = dict(num_train=320, num_val=20, num_test=100, num_labeled=24)
QUICK_SCENES = dict(num_train=10, num_val=2, num_test=3, num_labeled=4)
QUICK_OPTIONS = {
    'model.backbone.base_channels': 4,
    'model.decode_head.in_channels': 4,
    'model.decode_head.channels': 4,
    'mutual.supervised.max_iters': 3,
    'mutual.round.max_iters': 2,
    'param_scheduler': [],  # its warm-up is longer than this
}
ZOOM = 2  # pictures are small


class Row(NamedTuple):
    """A trained network.

    Attributes:
        method: How it was made.
        labels: Labeled images.
        steps: Training steps of this network from the start on.
        miou: Mean IoU on the held-out images, in percent.
        seconds: Training time, with that of all networks that had a part in it.
    """

    method: str
    labels: int
    steps: int
    miou: float
    seconds: float


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
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = Path('work_dirs', f'demo_seed{args.seed}' if args.seed else 'demo')
    return args


def main() -> None:
    """Make the data, train both ways, compare, draw."""
    args = parse_args()
    began = time.time()
    init_default_scope('mmseg')
    data_root = generate(
        args.work_dir / 'scenes', seed=args.seed, **(QUICK_SCENES if args.quick else SCENES)
    )
    chain = train(dmt_config(args, data_root), args.fresh)
    baseline = train(baseline_config(chain.cfg, args), args.fresh)
    say('Scores on the held-out images')
    rows = [*score(baseline), *score(chain)]
    say('Pictures')
    pictures = draw(args.work_dir, data_root, baseline, chain)
    report(args, rows, pictures, time.time() - began)


def say(text: str) -> None:
    """Print a headline."""
    print(f'\n== {text}', flush=True)


# --- Training ------------------------------------------------------------------------------------


def dmt_config(args: argparse.Namespace, data_root: Path) -> Config:
    """The config of the demo for a seed, with a progress bar in place of the log."""
    cfg = Config.fromfile(shipped_dir('configs') / CONFIG)
    cfg.data_root = str(data_root)
    cfg.work_dir = str(args.work_dir / 'dmt')
    cfg.log_level = 'ERROR'
    cfg.custom_hooks = [dict(type='mmdmt.ProgressBarHook')]
    for number, member in enumerate(cfg.mutual.members):
        member.seed = args.seed * len(cfg.mutual.members) + number
    if args.quick:
        cfg.merge_from_dict(QUICK_OPTIONS)
    return cfg


def baseline_config(dmt: Config, args: argparse.Namespace) -> Config:
    """Labeled images alone, for as many steps as the first member of DMT takes in all rounds."""
    cfg = copy.deepcopy(dmt)
    cfg.work_dir = str(args.work_dir / 'labeled_only')
    steps = dmt.mutual.supervised.max_iters + len(dmt.mutual.ratios) * dmt.mutual.round.max_iters
    cfg.mutual.members = cfg.mutual.members[:1]
    cfg.mutual.ratios = []
    cfg.mutual.supervised.max_iters = steps
    return cfg


def train(cfg: Config, fresh: bool) -> MutualTrainingRunner:
    """Run the stages that are not finished."""
    say(f'Training in {cfg.work_dir}')
    if fresh:
        shutil.rmtree(cfg.work_dir, ignore_errors=True)
    runner = MutualTrainingRunner.from_cfg(cfg)
    try:
        runner.train()
    except LedgerMismatchError:
        print(f'{cfg.work_dir} was trained with other settings: starting again')
        shutil.rmtree(cfg.work_dir)
        runner = MutualTrainingRunner.from_cfg(cfg)
        runner.train()
    return runner


# --- Scores --------------------------------------------------------------------------------------


def score(runner: MutualTrainingRunner) -> List[Row]:
    """Score the product of every stage on the test images."""
    entries = runner.ledger.read()
    labels = len(read_list(runner.cfg.test_dataloader.dataset.data_root, 'labeled'))
    rows, steps = [], {}
    for stage in runner.plan.stages:
        cfg = stage_config(runner, stage.name)
        steps[stage.member] = steps.get(stage.member, 0) + cfg.train_cfg.max_iters
        method = f'DMT round {stage.round}' if stage.round else 'labeled only'
        if len(runner.plan.member_names) > 1:
            method += f', member {stage.member}'
        needed = [s.name for s in runner.plan.stages if s.round < stage.round or s == stage]
        seconds = sum(entries[name]['seconds'] for name in needed)
        rows.append(Row(method, labels, steps[stage.member], test(cfg), seconds))
    return rows


def stage_config(runner: MutualTrainingRunner, name: str) -> Config:
    """The config a stage was trained with, set to its product."""
    cfg = Config.fromfile(osp.join(runner.work_dir, name, 'config.py'))
    cfg.load_from = runner.ledger.checkpoint(name)
    cfg.experiment_name = f'test_{name}_{time.time_ns()}'  # mmengine refuses a name it has seen
    return cfg


def test(cfg: Config) -> float:
    """Mean IoU in percent on the test images."""
    with contextlib.redirect_stdout(io.StringIO()):  # mmengine prints which file it loads
        return float(SemiRunner.from_cfg(cfg).test()['mIoU'])


def read_list(data_root: str, name: str) -> List[str]:
    """Ids of a split list."""
    return Path(data_root, 'splits', f'{name}.txt').read_text().split()


# --- Pictures ------------------------------------------------------------------------------------


def draw(
    work_dir: Path, data_root: Path, baseline: MutualTrainingRunner, chain: MutualTrainingRunner
) -> List[Path]:
    """Write the contact sheets: predictions, and the pseudo-labels of each round."""
    meta = metainfo(chain)
    legend = class_legend(meta.classes, meta.palette, width=130 * 5 * ZOOM)
    sheets = dict(
        predictions=draw_predictions(work_dir, data_root, baseline, chain),
        pseudo_labels=draw_pseudo_labels(data_root, chain),
    )
    return [
        save_image(work_dir / f'{name}.png', stack_sheets([legend, sheet]))
        for name, sheet in sheets.items()
    ]


def metainfo(runner: MutualTrainingRunner) -> ConfigDict:
    """Classes and palette of the scenes."""
    return runner.cfg.test_dataloader.dataset.metainfo


def draw_predictions(
    work_dir: Path, data_root: Path, baseline: MutualTrainingRunner, chain: MutualTrainingRunner
) -> np.ndarray:
    """Image, truth, and what mmseg's inferencer predicts with either network, on rich scenes."""
    palette = metainfo(chain).palette
    names = richest(data_root, 'test', 8)
    files = [str(data_root / 'img' / 'test' / f'{name}.jpg') for name in names]
    before = predict(baseline, work_dir / 'exported' / 'labeled_only', files)
    after = predict(chain, work_dir / 'exported' / 'dmt', files)
    rows = [
        [
            read(file),
            colorize_label(read_mask(data_root, 'test', name), palette),
            colorize_label(first, palette),
            colorize_label(second, palette),
        ]
        for file, name, first, second in zip(files, names, before, after)
    ]
    return tile_images(zoomed(rows), ['image', 'ground truth', 'labeled only', 'DMT'])


def predict(runner: MutualTrainingRunner, folder: Path, files: Sequence[str]) -> List[np.ndarray]:
    """Export the first member as a plain mmseg model and label files with mmseg's inferencer."""
    checkpoint = next(iter(runner.final_checkpoints().values()))
    exported = export_segmentor(checkpoint, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        inferencer = MMSegInferencer(str(exported.config), weights=str(exported.checkpoint))
        inferencer.show_progress = False
        samples = inferencer(list(files), return_datasamples=True)
    samples = samples if isinstance(samples, list) else [samples]
    return [sample.pred_sem_seg.data.squeeze(0).cpu().numpy() for sample in samples]


def draw_pseudo_labels(data_root: Path, chain: MutualTrainingRunner) -> np.ndarray:
    """Image, truth, then label and confidence of each round; pixels left out are white."""
    palette = metainfo(chain).palette
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


def report(
    args: argparse.Namespace, rows: Sequence[Row], pictures: Sequence[Path], seconds: float
) -> None:
    """Print the table, and write it as text and as JSON."""
    text = table(rows)
    (args.work_dir / 'results.md').write_text(text + '\n')
    content: Dict[str, Any] = dict(
        seed=args.seed, quick=args.quick, rows=[row._asdict() for row in rows]
    )
    (args.work_dir / 'results.json').write_text(json.dumps(content, indent=2) + '\n')
    say(f'Results of seed {args.seed}')
    print(text)
    print(f'\n{" and ".join(str(path) for path in pictures)} show them.')
    print(f'The whole demo took {seconds:.0f} s.')


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, aligned for the terminal."""
    found = PrettyTable(['method', 'labels', 'steps', 'test mIoU', 'training time'], align='r')
    found.set_style(TableStyle.MARKDOWN)
    found.align['method'] = 'l'
    for row in rows:
        found.add_row([*row[:3], f'{row.miou:.1f}', f'{row.seconds:.0f} s'])
    return found.get_string()


if __name__ == '__main__':
    main()
