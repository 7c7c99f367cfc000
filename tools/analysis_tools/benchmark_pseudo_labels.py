"""Compare labeling with a straightforward way of it: images a second, bytes an image.

The straightforward way does what the code published with DMT does: predict all images to find the
thresholds, predict them again to label, write (label, confidence) as float32 into a .npy file. Both
run in this process, take turns, and use the same network, weights, images and loader; building the
network and loading its weights are part of the time.

Usage::

python tools/analysis_tools/benchmark_pseudo_labels.py CONFIG --checkpoint stage_0_a/iter_600.pth
python tools/analysis_tools/benchmark_pseudo_labels.py CONFIG --img-dir images/train --images 100
python tools/analysis_tools/benchmark_pseudo_labels.py CONFIG --toy-scenes --images 50

Without a checkpoint the network starts from its initial weights. An untrained classifier is
confident of nothing and its labels are noise, which compresses badly: take a checkpoint for sizes
that count.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from prettytable import PrettyTable
from torch import nn
from torch.utils.data import DataLoader, Dataset

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.config import merge_options, resolve_config
from mmdmt.files import shipped_dir, write_text_atomically
from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.registry import DATASETS

sys.path.insert(0, str(shipped_dir('examples')))
from toy_scenes import generate

METHODS = ('one pass', 'two passes')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compare ways of making pseudo-labels')
    parser.add_argument('config', help='config with the network, the images and the test pipeline')
    parser.add_argument('--checkpoint', help='weights (default: as the config initializes them)')
    images = parser.add_mutually_exclusive_group()
    images.add_argument('--img-dir', help='folder of images (default: those of the config)')
    images.add_argument('--toy-scenes', action='store_true', help='generated images')
    parser.add_argument('--img-suffix', default='.jpg', help='of --img-dir; default .jpg')
    parser.add_argument('--images', type=int, help='number of images; default all')
    parser.add_argument('--repeats', type=int, default=3, help='runs of each way; default 3')
    parser.add_argument('--ratio', type=float, default=0.5, help='share that is kept; default 0.5')
    parser.add_argument('--num-workers', type=int, default=0, help='loader workers; default 0')
    parser.add_argument('--trust-checkpoint', action='store_true', help='let CHECKPOINT run code')
    parser.add_argument('--out', help='JSON file to write')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value')
    args = parser.parse_args(argv)
    if args.repeats < 1 or (args.images is not None and args.images < 1):
        parser.error('--repeats and --images must be at least 1')
    return args


# ---------------------------------------------------------------------- what is measured


class TwoPasses:
    """The straightforward way: one pass for thresholds, another one for labels.

    Args:
        folder: Where the .npy files go.
        model: Config of the network.
        dataset: Config of the images.
        num_workers: Loader workers.
        pixel_stride: Thresholds use every n-th pixel.
    """

    def __init__(
        self, folder: Path, model: dict, dataset: dict, num_workers: int, pixel_stride: int = 16
    ) -> None:
        self.folder = folder
        self.model_cfg = model
        self.dataset_cfg = dataset
        self.num_workers = num_workers
        self.pixel_stride = pixel_stride

    @torch.no_grad()
    def run(self, checkpoint: str, ratio: float) -> None:
        """Write the labels of all images."""
        dataset = DATASETS.build(self.dataset_cfg)
        model = build_segmentor(self.model_cfg)
        model.load_state_dict(load_checkpoint_file(checkpoint)['state_dict'])
        model.to(get_device()).eval()
        thresholds = self._thresholds(model, dataset, ratio)
        for index, (label, confidence) in enumerate(self._predict(model, dataset)):
            label[confidence < thresholds[label]] = 255
            path = self.folder / f'{dataset.get_data_info(index)["name"]}.npy'
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.stack([label, confidence], axis=-1).astype(np.float32))

    def _thresholds(self, model: nn.Module, dataset: Dataset, ratio: float) -> np.ndarray:
        """(C,) confidence at rank ``int(ratio * n)`` of the n sampled pixels of each class."""
        found: List[List[np.ndarray]] = [[] for _ in range(model.num_classes)]
        for label, confidence in self._predict(model, dataset):
            label = label.ravel()[:: self.pixel_stride]
            confidence = confidence.ravel()[:: self.pixel_stride]
            for index in range(model.num_classes):
                found[index].append(confidence[label == index])
        thresholds = np.full(model.num_classes, 1e-5, np.float32)
        for index, values in enumerate(map(np.concatenate, found)):
            if len(values) * ratio >= 1:
                rank = min(int(len(values) * ratio), len(values) - 1)
                thresholds[index] = np.sort(values)[::-1][rank]
        return thresholds

    def _predict(self, model: nn.Module, dataset: Dataset) -> Iterator[tuple]:
        """Label (H, W) int64 and confidence (H, W) float32 of each image, by a forward."""
        loader = DataLoader(dataset, num_workers=self.num_workers, collate_fn=pseudo_collate)
        for batch in loader:
            data = model.data_preprocessor(batch, False)
            for sample in model.predict(data['inputs'], data['data_samples']):
                confidence, label = sample.seg_logits.data.softmax(dim=0).max(dim=0)
                yield label.cpu().numpy(), confidence.cpu().numpy()


# ---------------------------------------------------------------------- setting it up


def image_config(args: argparse.Namespace, cfg: Config, folder: Path) -> dict:
    """Config of the images to label, with the test pipeline."""
    dataset = dict(type='mmdmt.UnlabeledDataset')
    if args.toy_scenes:
        sizes = dict(num_train=args.images or 100, num_val=1, num_test=1, num_labeled=1)
        root = generate(folder / 'scenes', **sizes, progress=False)
        dataset.update(data_prefix=dict(img_path=str(root / 'img' / 'train')))
    elif args.img_dir:
        dataset.update(data_prefix=dict(img_path=args.img_dir), img_suffix=args.img_suffix)
    else:
        dataset = dict(cfg.train_dataloader.dataset.datasets[-1])
    steps = cfg.test_dataloader.dataset.pipeline
    pipeline = [
        step
        for step in steps
        if not step['type'].split('.')[-1].startswith(('LoadAnnotations', 'LoadMasks'))
    ]
    if args.images:
        dataset['indices'] = args.images
    return dict(dataset, pipeline=pipeline)


def write_checkpoint(args: argparse.Namespace, cfg: Config, path: Path) -> str:
    """Weights that both ways load."""
    if args.checkpoint:
        trusted = [args.checkpoint] if args.trust_checkpoint else []
        content = load_checkpoint_file(args.checkpoint, trusted=trusted)
        weights = content.get('state_dict', content)
    else:
        torch.manual_seed(0)
        model = build_segmentor(cfg.model)
        model.init_weights()
        weights = model.state_dict()
    torch.save(dict(state_dict=weights), path)
    return str(path)


# ---------------------------------------------------------------------- measuring


def measure(
    ways: Dict[str, Callable[[Path], None]], folder: Path, repeats: int
) -> Dict[str, List[float]]:
    """Seconds of each run; the ways take turns, each first as often as the other.

    Args:
        ways: Function by name; it is called with an empty folder.
        folder: Holds the result of each way's last run.
        repeats: Runs of each.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in ways if repeat % 2 == 0 else reversed(list(ways)):
            shutil.rmtree(folder / name, ignore_errors=True)
            began = time.perf_counter()
            ways[name](folder / name)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compare(store: PseudoLabelStore, folder: Path, names: Sequence[str]) -> Dict[str, Any]:
    """How far the labels of both agree.

    Args:
        store: What one pass made.
        folder: What two passes made.
        names: Images.

    Returns:
        dict: ``agreement``, the share of the pixels to which both give the same label, or none,
        and ``kept_share`` of each way.
    """
    same = total = 0
    kept = dict.fromkeys(METHODS, 0)
    for name in names:
        maps = store.get_thresholded(name)[0], np.load(folder / f'{name}.npy')[..., 0]
        same += int((maps[0] == maps[1]).sum())
        total += maps[0].size
        for method, label in zip(METHODS, maps):
            kept[method] += int((label != 255).sum())
    shares = {method: count / total for method, count in kept.items()}
    return dict(agreement=same / total, kept_share=shares)


def bytes_per_image(folder: Path, suffix: str, count: int) -> float:
    """Mean size of the files of a kind."""
    return sum(path.stat().st_size for path in folder.rglob(f'*{suffix}')) / count


def report(result: Dict[str, Any]) -> str:
    """The result as text."""
    titles = ['', 'seconds (all runs)', 'images/s', 'bytes/image', 'bytes/pixel']
    table = PrettyTable(titles, border=False, align='r')
    table.align[''] = 'l'
    for name in METHODS:
        way = result['ways'][name]
        rates = f'{way["images_per_second"]:.2f}', f'{way["bytes_per_image"]:.0f}'
        runs = ', '.join(f'{value:.1f}' for value in way['seconds'])
        table.add_row([name, runs, *rates, f'{way["bytes_per_pixel"]:.3f}'])
    lines = [
        f'{result["images"]} images, {result["device"]}, torch {result["torch"]}, '
        f'{result["repeats"]} runs each, alternately',
        table.get_string(),
        f'speed x {result["speed_ratio"]:.2f} (median; by turn '
        + ', '.join(f'{value:.2f}' for value in result['speed_ratios'])
        + f'), size / {result["size_ratio"]:.1f}',
        f'same label, or none, on {100 * result["agreement"]:.3f} % of the pixels; kept '
        + ' and '.join(f'{100 * result["kept_share"][name]:.3f} %' for name in METHODS),
    ]
    return '\n'.join(lines)


def summarize(
    seconds: Dict[str, List[float]], sizes: Dict[str, float], images: int, pixels: int
) -> Dict[str, Any]:
    """Medians and ratios of what was measured.

    Args:
        seconds: Of each run, by way.
        sizes: Bytes an image, by way.
        images: Number of images.
        pixels: Number of pixels of all images.
    """
    one, two = METHODS
    ways = {
        name: dict(
            seconds=seconds[name],
            images_per_second=images / statistics.median(seconds[name]),
            bytes_per_image=sizes[name],
            bytes_per_pixel=sizes[name] * images / pixels,
        )
        for name in METHODS
    }
    return dict(
        ways=ways,
        speed_ratios=[slow / fast for fast, slow in zip(seconds[one], seconds[two])],
        speed_ratio=statistics.median(seconds[two]) / statistics.median(seconds[one]),
        size_ratio=sizes[two] / sizes[one],
    )


def run(args: argparse.Namespace, folder: Path) -> Dict[str, Any]:
    """Measure, with files in ``folder``."""
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        merge_options(cfg, args.cfg_options)
    init_default_scope(resolve_config(cfg).get('default_scope', 'mmseg'))
    dataset = image_config(args, cfg, folder)
    checkpoint = write_checkpoint(args, cfg, folder / 'weights.pth')

    def ways(images: dict) -> Dict[str, Callable[[Path], Any]]:
        common = dict(model=cfg.model, dataset=images, num_workers=args.num_workers)
        return {
            'one pass': lambda out: PseudoLabeler(str(out), **common).run(checkpoint, args.ratio),
            'two passes': lambda out: TwoPasses(out, **common).run(checkpoint, args.ratio),
        }

    measure(ways(dict(dataset, indices=1)), folder, 1)  # what only the first call of a process does
    seconds = measure(ways(dataset), folder, args.repeats)
    store = PseudoLabelStore(folder / 'one pass')
    names = list(store.manifest['files'])
    sizes = {
        'one pass': bytes_per_image(store.root / 'maps', '.plc', len(names)),
        'two passes': bytes_per_image(folder / 'two passes', '.npy', len(names)),
    }
    return dict(
        images=len(names),
        device=get_device(),
        torch=torch.__version__,
        repeats=args.repeats,
        **compare(store, folder / 'two passes', names),
        **summarize(seconds, sizes, len(names), store.manifest['num_pixels']),
    )


def main(argv: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Measure and print.

    Args:
        argv: Command line, for calls from Python.

    Returns:
        dict: The measurements.
    """
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix='mmdmt_benchmark_') as folder:
        result = run(args, Path(folder))
    result['command'] = vars(args)
    print(report(result))
    if args.out:
        write_text_atomically(args.out, json.dumps(result, indent=1))
    return result


if __name__ == '__main__':
    main()
