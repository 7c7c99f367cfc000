"""Print mean, deviation, range and classes of a dataset, as lines for a config.

Usage::

python tools/misc/dataset_statistics.py CONFIG
python tools/misc/dataset_statistics.py FOLDER --suffix .tif --bands 3 2 1 0
python tools/misc/dataset_statistics.py FOLDER --suffix .tif --mask-dir MASKS --mask-suffix .tif \
    --mask-values "{0: 'background', 255: 'polyp'}"

Of a config, the training images, labeled and unlabeled, with the bands and the nodata value of
``mmdmt.LoadBands``, and the masks of labeled ones. Every image is read twice. Pixels that are NaN,
infinite or nodata do not count.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from prettytable import PrettyTable
from tqdm import tqdm

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.config import merge_options, resolve_config
from mmdmt.datasets.checks.problems import raise_on_problems
from mmdmt.datasets.checks.sources import read_sources
from mmdmt.datasets.mask_values import IGNORED, MaskValues
from mmdmt.datasets.rasters import read_measured
from mmdmt.datasets.statistics import BandStatistics, class_weights, config_lines
from mmdmt.datasets.transforms.load_masks import LoadMasks

PERCENTILES = (0.01, 0.5, 0.99)


class Inputs(NamedTuple):
    """What to read."""

    images: List[str]
    masks: List[Tuple[str, LoadMasks, dict]]  # path, how it is loaded, what else its dataset says
    classes: Tuple[str, ...]
    bands: Optional[Sequence[int]]
    nodata: Optional[float]


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Statistics of the images and masks of a dataset')
    parser.add_argument('source', metavar='CONFIG|FOLDER', help='config, or folder of images')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value')
    parser.add_argument('--bands', nargs='+', type=int, help='channels, from 0 (default: all)')
    parser.add_argument('--nodata', type=float, help='value that does not count')
    parser.add_argument('--tail', type=float, default=0.01, help='share cut off (default: 0.01)')
    group = parser.add_argument_group('of a folder')
    group.add_argument('--suffix', default='.tif', help='of images (default: .tif)')
    group.add_argument('--mask-dir', help='masks, named as the images')
    group.add_argument('--mask-suffix', default='.png', help='default: .png')
    group.add_argument('--mask-values', type=ast.literal_eval, help='as in a config')
    args = parser.parse_args(argv)
    if not 0 <= args.tail < 0.5:
        parser.error(f'--tail {args.tail} is not a share below one half')
    return args


def of_folder(args: argparse.Namespace) -> Inputs:
    """All images below a folder, and the masks that there are of them."""
    root = Path(args.source)
    images = sorted(root.rglob(f'*{args.suffix}'))
    values = MaskValues.parse(args.mask_values) if args.mask_values else None
    load, masks = LoadMasks(mask_values=args.mask_values), []
    for image in images if args.mask_dir else ():
        name = str(image.relative_to(root))[: -len(args.suffix)] + args.mask_suffix
        if (Path(args.mask_dir) / name).is_file():
            masks.append((str(Path(args.mask_dir) / name), load, {}))
    classes = values.names if values else ()
    return Inputs([str(image) for image in images], masks, classes, args.bands, args.nodata)


def of_config(args: argparse.Namespace) -> Inputs:
    """Training images and masks of a config.

    Raises:
        DatasetError: If its lists or folders are wrong.
    """
    cfg = Config.fromfile(args.source)
    merge_options(cfg, args.cfg_options or {})
    cfg = resolve_config(cfg)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    problems: list = []
    datasets = cfg.train_dataloader.dataset
    sources = read_sources(datasets, problems)
    raise_on_problems(problems)
    first = next(_steps(datasets, 'LoadBands'), {})
    masks: list = []
    for source in sources:
        load = LoadMasks()
        load.mask_values = source.rules.values
        rules = source.rules
        info = dict(reduce_zero_label=rules.reduce_zero_label, label_map=rules.label_map)
        masks += [(s.mask, load, info) for s in source.samples if s.mask]
    images = [s.image for source in sources for s in source.samples if s.image]
    classes = next((source.classes for source in sources if source.labeled), ())
    nodata = first.get('nodata') if args.nodata is None else args.nodata
    return Inputs(
        list(dict.fromkeys(images)), masks, classes, args.bands or first.get('bands'), nodata
    )


def _steps(node: Any, kind: str) -> Iterator[dict]:
    """All steps of a kind in nested datasets."""
    if isinstance(node, dict) and str(node.get('type')).split('.')[-1] == kind:
        yield node
    values = node.values() if isinstance(node, dict) else node
    for value in values if isinstance(node, (dict, list, tuple)) else ():
        yield from _steps(value, kind)


def measure(inputs: Inputs) -> BandStatistics:
    """Read all images twice."""
    statistics = BandStatistics()
    for step, title in ((statistics.update, 'mean and range'), (statistics.count, 'percentiles')):
        for path in tqdm(inputs.images, desc=title, unit='image'):
            try:
                step(*read_measured(path, inputs.bands, None, inputs.nodata))
            except ValueError as error:
                raise ValueError(f'{path}: {error}') from error
    return statistics


def count_classes(inputs: Inputs) -> Dict[int, int]:
    """Pixels of each class id in the masks."""
    counts = np.zeros(256, np.int64)
    for path, load, info in tqdm(
        inputs.masks, desc='classes', unit='mask', disable=not inputs.masks
    ):
        given = dict(dict(reduce_zero_label=False, seg_fields=[]), **info)
        label = load(dict(given, seg_map_path=path))['gt_seg_map']
        counts += np.bincount(label.ravel(), minlength=256)[:256]
    return {index: int(count) for index, count in enumerate(counts) if count}


def report(inputs: Inputs, statistics: BandStatistics, tail: float) -> str:
    """Tables, and the lines for a config."""
    table = PrettyTable(
        ['band', 'mean', 'std', 'min', '1 %', '50 %', '99 %', 'max', 'pixels'], align='r'
    )
    columns = [statistics.mean, statistics.std, statistics.low]
    columns += [*statistics.percentiles(PERCENTILES), statistics.high]
    bands = inputs.bands or range(len(statistics.mean))
    for index, (band, *values) in enumerate(zip(bands, *columns)):
        row = [f'{value:.6g}' for value in values]
        table.add_row([band, *row, int(statistics.pixels[index])])
    lines = [f'{len(inputs.images)} images', str(table)]
    counts = count_classes(inputs)
    if counts:
        lines += ['', _class_table(counts, inputs)]
    found = config_lines(statistics, tail)
    lines += ['', '# data_preprocessor, of type mmdmt.PaddingPreprocessor']
    lines += [f'{key}={value},' for key, value in found.items()]
    lines += ['# backbone', f'in_channels={len(statistics.mean)},']
    classes = len(inputs.classes) or max([i for i in counts if i != IGNORED], default=-1) + 1
    if counts and classes > 1:
        weights = class_weights([counts.get(index, 0) for index in range(classes)])
        lines += ['# loss_decode, to balance the classes', f'class_weight={weights},']
    return '\n'.join(lines)


def _class_table(counts: Dict[int, int], inputs: Inputs) -> str:
    table = PrettyTable(['class', 'name', 'pixels', '% of labeled'], align='r')
    labeled = sum(count for index, count in counts.items() if index != IGNORED)
    for index in sorted({*counts, *range(len(inputs.classes))}):
        count = counts.get(index, 0)
        name = inputs.classes[index] if index < len(inputs.classes) else ''
        share = '-' if index == IGNORED else f'{100 * count / max(labeled, 1):.2f}'
        table.add_row([index, 'ignored' if index == IGNORED else name, count, share])
    return f'{len(inputs.masks)} masks\n{table}'


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    args = parse_args(argv)
    try:
        inputs = of_folder(args) if Path(args.source).is_dir() else of_config(args)
        if not inputs.images:
            raise ValueError(f'{args.source} has no images (--suffix {args.suffix})')
        print(report(inputs, measure(inputs), args.tail))
    except (ValueError, OSError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
