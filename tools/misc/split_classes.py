"""Make lists of labeled, unlabeled and validation images for classification.

Usage::

python tools/misc/split_classes.py --dataset CIFAR10 --data-root data/cifar10 \
    --out-dir data/cifar10/splits
python tools/misc/split_classes.py --img-dir my_data/train --per-class 5 50 --seeds 1 \
    --val-per-class 10 --out-dir my_data/splits

writes ``splits/<labels>/seed_<seed>/labeled.txt`` and ``unlabeled.txt``,
``splits/validation/val.txt`` and ``splits/manifest.json``. By default the sets that DMT used on
CIFAR-10: 4, 25, 100 and 400 labels of each class, seeds 1 to 5, 20 validation images of each class.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

import mmdmt.classification  # noqa: F401  (says what to install when something is missing)
from mmdmt.classification import ListedDataset
from mmdmt.classification.class_splits import VALIDATION_SEED, per_class_splits
from mmdmt.datasets.splits.files import describe_list, write_splits


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Make lists of labeled and unlabeled images for classification'
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--dataset', help='a dataset of mmpretrain, such as CIFAR10')
    source.add_argument('--img-dir', help='a folder with one folder of images for each class')
    parser.add_argument('--data-root', help='with --dataset: where it is')
    parser.add_argument('--download', action='store_true', help='fetch the dataset if missing')
    parser.add_argument(
        '--per-class', nargs='+', type=int, default=[4, 25, 100, 400], metavar='N', help='labels'
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3, 4, 5], metavar='S')
    parser.add_argument('--val-per-class', type=int, default=20, metavar='N')
    parser.add_argument('--out-dir', required=True, help='where to write')
    parser.add_argument('--force', action='store_true', help='overwrite lists that differ')
    args = parser.parse_args(argv)
    if args.dataset and not args.data_root:
        parser.error('--dataset needs --data-root')
    return args


def read_labels(args: argparse.Namespace) -> dict[str, int]:
    """Read the class of every image by name."""
    if args.img_dir:
        config = dict(type='mmpretrain.CustomDataset', data_prefix=args.img_dir)
    else:
        config = dict(
            type=f'mmpretrain.{args.dataset}',
            data_root=args.data_root,
            split='train',
            download=args.download,
        )
    dataset = ListedDataset(dataset=config)
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    labels = {info['name']: info['gt_label'] for info in infos}
    check_classes(dataset.metainfo.get('classes') or (), set(labels.values()))
    return labels


def check_classes(classes: Sequence[str], found: set[int]) -> None:
    """Refuse classes without images: a network would have them, but never learn them.

    Raises:
        ValueError: Naming them.
    """
    empty = [name for number, name in enumerate(classes) if number not in found]
    if empty:
        raise ValueError(
            f'the classes {", ".join(empty)} have no image: add images, or remove their folders'
        )


def run(args: argparse.Namespace) -> None:
    """Read, draw and write."""
    labels = read_labels(args)
    drawn = per_class_splits(labels, args.per_class, args.seeds, args.val_per_class)
    parent = dict(source=args.img_dir or args.dataset, **describe_list(sorted(labels)))
    sets, facts = {}, {}
    for (count, seed), (labeled, unlabeled) in drawn.splits.items():
        name = f'{count}/seed_{seed}'
        sets[name] = dict(labeled=labeled, unlabeled=unlabeled)
        facts[name] = dict(method='per class', seed=seed, parent=parent)
    if drawn.val:
        sets['validation'] = dict(val=drawn.val)
        facts['validation'] = dict(method='per class', seed=VALIDATION_SEED, parent=parent)
    files = write_splits(args.out_dir, sets, facts, args.force)
    for name, lists in sets.items():
        print(f'  {name}: ' + ', '.join(f'{len(ids)} {kind}' for kind, ids in lists.items()))
    print(f'wrote {len(files)} lists and manifest.json to {args.out_dir}')


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    args = parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
