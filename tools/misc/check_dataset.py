"""Find everything that is wrong with a dataset before training does.

Usage::

python tools/misc/check_dataset.py CONFIG --cfg-options data_root=/data/voc
python tools/misc/check_dataset.py --img-dir images --mask-dir masks --num-classes 21 \
    --labeled splits/1_8/fold_0/labeled.txt --unlabeled splits/1_8/fold_0/unlabeled.txt

Prints one table of all problems. Exit status: 0 if there are none, 1 if there are some or nothing
can be checked, 2 if the command line is wrong.
"""

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional, Union

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.config import merge_options, resolve_config
from mmdmt.datasets.checks.problems import Problem, format_problems
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.datasets.mask_values import MaskValues
from mmdmt.export.plain import dicts_in
from mmdmt.files import write_text_atomically

MASK_VALUES = (
    """what masks hold, as in a config: "{0: 'background', 255: 'polyp'}" or "[0, 255]\""""
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Find everything that is wrong with a dataset')
    parser.add_argument('config', nargs='?', help='config whose data to check')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value, nested keys with dots',
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        '--full', dest='full', action='store_true', default=True, help='decode all (default)'
    )
    mode.add_argument(
        '--fast', dest='full', action='store_false', help='lists, existence, file headers only'
    )
    parser.add_argument('--json', metavar='FILE', help='also write the problems as JSON')
    parser.add_argument('--max-rows', type=int, help='rows of the table (default: all)')
    parser.add_argument(
        '--cache',
        metavar='FILE',
        help='remember sound files here; WORK_DIR/dataset_check.json is what training looks at',
    )
    parser.add_argument('--workers', type=int, help='threads (default: cores, at most 8)')
    _add_folder_options(parser)
    args = parser.parse_args(argv)
    if bool(args.config) == bool(args.img_dir):
        parser.error('give either a config or --img-dir')
    if (args.labeled or args.val) and not args.mask_dir:
        parser.error('--labeled and --val need --mask-dir')
    return args


def _add_folder_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('without a config')
    group.add_argument('--img-dir', help='folder of the images')
    group.add_argument('--mask-dir', help='folder of the masks')
    group.add_argument('--labeled', metavar='LIST', help='labeled ids, one per line')
    group.add_argument('--unlabeled', metavar='LIST', help='unlabeled ids, one per line')
    group.add_argument('--val', metavar='LIST', help='validation ids, one per line')
    group.add_argument('--num-classes', type=int, help='classes are 0 to this - 1')
    group.add_argument('--ignore-index', type=int, default=255, help='default: 255')
    group.add_argument('--reduce-zero-label', action='store_true', help='as in mmseg')
    group.add_argument('--mask-values', type=ast.literal_eval, metavar='VALUES', help=MASK_VALUES)
    group.add_argument('--img-suffix', default='.jpg', help='default: .jpg')
    group.add_argument('--mask-suffix', default='.png', help='default: .png')


def find_problems(args: argparse.Namespace) -> list[Problem]:
    """Check what the command line names.

    Raises:
        SystemExit: If the config has no ``train_dataloader.dataset``.
    """
    datasets = configured_datasets(args) if args.config else folder_datasets(args)
    return check_dataset(**datasets, full=args.full, cache_file=args.cache, workers=args.workers)


def configured_datasets(args: argparse.Namespace) -> dict:
    """Datasets of the config's loaders, by part."""
    config = Config.fromfile(args.config)
    merge_options(config, args.cfg_options or {})
    config = resolve_config(config)  # as the runner does: a new data_root reaches every dataset
    init_default_scope(config.get('default_scope', 'mmseg'))
    loaders = {part: config.get(f'{part}_dataloader') or {} for part in ('train', 'val', 'test')}
    datasets = {part: loader.get('dataset') for part, loader in loaders.items()}
    if datasets['train'] is None:
        raise SystemExit(
            f'{args.config} has no train_dataloader.dataset: there is nothing to check'
        )
    return dict(datasets, num_classes=_head_classes(config.get('model')))


def _head_classes(model: Any) -> Optional[int]:
    """Number of classes of the first decode head, or head, in a config of a model."""
    for part in dicts_in(model):
        head = part.get('decode_head') or part.get('head')
        head = head[-1] if isinstance(head, (list, tuple)) else head
        if isinstance(head, dict) and 'num_classes' in head:
            return head['num_classes']
    return None


def folder_datasets(args: argparse.Namespace) -> dict:
    """Datasets of the folders and lists, by part; every image is taken where there is no list."""
    count = args.num_classes
    common = dict(
        type='mmseg.BaseSegDataset',
        img_suffix=args.img_suffix,
        seg_map_suffix=args.mask_suffix,
        metainfo=None if count is None else dict(classes=_class_names(count, args.mask_values)),
        ignore_index=args.ignore_index,
        reduce_zero_label=args.reduce_zero_label,
        pipeline=[
            dict(type='mmcv.LoadImageFromFile'),
            dict(type='mmdmt.LoadMasks', mask_values=args.mask_values),
        ],
    )
    images = dict(img_path=args.img_dir)
    both = dict(images, seg_map_path=args.mask_dir) if args.mask_dir else images
    train = []
    if args.labeled or not args.unlabeled:
        train.append(dict(common, ann_file=args.labeled or '', data_prefix=both))
    if args.unlabeled:
        train.append(dict(common, ann_file=args.unlabeled, data_prefix=images))
    val = dict(common, ann_file=args.val, data_prefix=both) if args.val else None
    return dict(train=train, val=val)


def _class_names(count: int, mask_values: Union[dict, list, None]) -> list[str]:
    names = MaskValues.parse(mask_values).names if mask_values else ()
    return list(names) if len(names) == count else [str(index) for index in range(count)]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    args = parse_args(argv)
    problems = find_problems(args)
    if args.json:
        write_text_atomically(args.json, json.dumps([asdict(p) for p in problems], indent=1))
    if problems:
        print(format_problems(problems, args.max_rows))
        return 1
    print('no problems in the data' + ('' if args.full else ' (files were not decoded: --fast)'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
