"""Make lists of labeled and unlabeled images for any dataset.

Usage::

python tools/misc/split_dataset.py --list trainaug.txt --denominators 8 20 105.82 --folds 3 \
    --out-dir splits
python tools/misc/split_dataset.py --img-dir images/train --fractions 0.1 --counts 50 \
    --class-aware --mask-dir masks/train --num-classes 21 --out-dir splits
python tools/misc/split_dataset.py --img-dir images/train --by-mask --mask-dir masks/train \
    --out-dir splits                                    # splits/labeled.txt, splits/unlabeled.txt

writes ``splits/1_8/fold_0/labeled.txt``, ``unlabeled.txt``, ... and ``splits/manifest.json``.
Denominators reproduce the published lists of DMT and DST-CBC (seed 7777, sorted ids).
"""

import argparse
import ast
import os.path as osp
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.datasets.checks.file_facts import LabelRules, color_facts, map_in_threads, mask_facts
from mmdmt.datasets.mask_values import MaskValues
from mmdmt.datasets.splits import difference_maximized_subsets
from mmdmt.datasets.splits.draws import PUBLISHED_SEED, Splits, draw_splits, published_size
from mmdmt.datasets.splits.files import describe_list, read_list, write_splits

Presence = Mapping[str, frozenset]


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Make lists of labeled and unlabeled images for any dataset'
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--list', metavar='FILE', help='all ids, one per line')
    source.add_argument('--img-dir', help='take every image below this folder')
    parser.add_argument('--img-suffix', default='.jpg', help='with --img-dir (default: .jpg)')
    parser.add_argument('--out-dir', required=True, help='where to write')
    parser.add_argument('--force', action='store_true', help='overwrite lists that differ')
    _add_size_options(parser)
    _add_class_options(parser)
    args = parser.parse_args(argv)
    sized = bool(args.denominators or args.fractions or args.counts)
    if args.by_mask and (sized or args.class_aware or args.difference_maximized):
        parser.error('--by-mask draws nothing: give it no sizes and no way of drawing')
    if args.by_mask and args.mask_dir is None:
        parser.error('--by-mask needs --mask-dir')
    if not sized and not args.by_mask:
        parser.error('give sizes: --denominators, --fractions or --counts; or --by-mask')
    if args.class_aware and (args.mask_dir is None or args.num_classes is None):
        parser.error('--class-aware needs --mask-dir and --num-classes')
    if not 0 <= args.common <= 1:
        parser.error(f'--common {args.common} is not a share from 0 to 1')
    return args


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('sizes (labeled sets of one fold contain smaller ones)')
    group.add_argument(
        '--denominators',
        nargs='+',
        type=_number,
        default=[],
        metavar='D',
        help='label one in D images, as published; 105.82 (VOC), 29.75 (Cityscapes): 100 labels',
    )
    group.add_argument('--fractions', nargs='+', type=_number, default=[], metavar='F')
    group.add_argument('--counts', nargs='+', type=int, default=[], metavar='N')
    group.add_argument('--folds', type=int, default=3, help='draws (default: 3)')
    group.add_argument('--seed', type=int, default=PUBLISHED_SEED, help='default: 7777')
    group.add_argument(
        '--difference-maximized',
        action='store_true',
        help='also left.txt and right.txt: two subsets of the labeled list, one for each member',
    )
    group.add_argument(
        '--common', type=float, default=0.6, help='share of ids in both subsets (default: 0.6)'
    )


def _add_class_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('class-aware drawing')
    group.add_argument(
        '--class-aware', action='store_true', help='show every class in every set, where possible'
    )
    group.add_argument(
        '--by-mask', action='store_true', help='no drawing: labeled are the images with a mask'
    )
    group.add_argument('--mask-dir', help='masks, named as the images')
    group.add_argument('--mask-suffix', default='.png', help='default: .png')
    group.add_argument('--num-classes', type=int)
    group.add_argument('--ignore-index', type=int, default=255, help='default: 255')
    group.add_argument('--reduce-zero-label', action='store_true', help='as in mmseg')
    group.add_argument(
        '--mask-values',
        type=ast.literal_eval,
        metavar='VALUES',
        help='what masks hold, as in a config: "[0, 255]"',
    )
    group.add_argument('--workers', type=int, help='threads (default: cores, at most 8)')


def _number(text: str) -> Union[int, float]:
    """Read 8 as an int, so that folders are called 1_8, and 105.82 as a float."""
    value = float(text)
    return int(value) if value.is_integer() else value


def read_ids(args: argparse.Namespace) -> list[str]:
    """Read the ids from the list, or from the names of the images below the folder.

    Raises:
        ValueError: If there are none.
    """
    if args.list:
        ids, source = read_list(args.list), f'list {args.list}'
    else:
        paths = (
            path.relative_to(args.img_dir).as_posix() for path in Path(args.img_dir).rglob('*')
        )
        ids = sorted(p[: -len(args.img_suffix)] for p in paths if p.endswith(args.img_suffix))
        source = f'images {args.img_dir}/**/*{args.img_suffix}'
    if not ids:
        raise ValueError(f'there are no {source}')
    print(f'{len(ids)} ids from {source}')
    return ids


def read_presence(ids: Sequence[str], args: argparse.Namespace) -> Presence:
    """Read which classes every mask shows.

    Raises:
        ValueError: On a mask that cannot be read or has ids outside the classes, naming the file.
    """
    values = MaskValues.parse(args.mask_values) if args.mask_values else None
    rules = LabelRules(args.num_classes, args.ignore_index, args.reduce_zero_label, values=values)
    read = color_facts if rules.kind == 'color' else mask_facts

    def classes_of(name: str) -> frozenset:
        path = osp.join(args.mask_dir, name + args.mask_suffix)
        if not osp.isfile(path):
            raise ValueError(
                f'there is no mask {path}: --by-mask makes the list of the images that have one, '
                'from which --list can draw'
            )
        try:
            found = read(path).ids
        except Exception as error:  # Pillow raises nearly anything on broken files
            raise ValueError(f'mask {path} cannot be read: {error}') from error
        illegal = rules.illegal(found)
        if illegal:
            raise ValueError(
                f'mask {path} has ids {illegal} outside the {rules.num_classes} classes, and '
                f'ignore_index is {rules.ignore_index}: correct one of the three'
            )
        return frozenset(map(rules.to_class, found)) - {rules.ignore_index}

    return dict(zip(ids, map_in_threads(classes_of, ids, 'reading masks', args.workers)))


def missing_classes(names: Iterable[str], presence: Presence) -> list[int]:
    """List the classes that occur in the dataset but in none of ``names``, ascending."""
    return sorted(
        frozenset().union(*presence.values()) - frozenset().union(*(presence[n] for n in names))
    )


def fraction_size(total: int, fraction: float) -> int:
    """Number of labeled images among ``total`` for a share of them, rounded to whole images.

    Raises:
        ValueError: If the share is outside (0, 1] or leaves no labeled image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'fraction {fraction} is outside (0, 1]: 0.1 labels a tenth')
    size = round(total * fraction)
    if size == 0:
        raise ValueError(f'fraction {fraction} leaves no labeled image of {total}')
    return size


def draw(
    ids: Sequence[str], presence: Optional[Presence], args: argparse.Namespace
) -> dict[str, Splits]:
    """Draw the lists of every way sizes were named, by the prefix of their folders' names."""
    ways = {
        '1_': {size: published_size(len(ids), size) for size in args.denominators},
        'fraction_': {size: fraction_size(len(ids), size) for size in args.fractions},
        'count_': {size: size for size in args.counts},
    }
    return {
        prefix: draw_splits(ids, sizes, args.folds, args.seed, presence)
        for prefix, sizes in ways.items()
        if sizes
    }


def lists_of(splits: Splits, prefix: str, args: argparse.Namespace) -> dict[str, dict]:
    """Name the sets and their lists as their folders and files will be named."""
    rng = random.Random(args.seed)  # one stream for all sets, as published
    named = {}
    for (size, fold), (labeled, unlabeled) in splits.items():
        lists = named[f'{prefix}{size}/fold_{fold}'] = dict(labeled=labeled, unlabeled=unlabeled)
        if args.difference_maximized:
            subsets = difference_maximized_subsets(labeled, args.common, rng)
            lists.update(zip(('left', 'right'), subsets))
    return named


def describe(
    ids: Sequence[str], presence: Optional[Presence], lists: Mapping, args: argparse.Namespace
) -> dict:
    """Say how a set was drawn, for the manifest."""
    facts = dict(
        method='by mask'
        if args.by_mask
        else 'shuffled prefix'
        if presence is None
        else 'class-aware',
        seed=args.seed,
        parent=dict(source=args.list or args.img_dir, **describe_list(sorted(ids))),
    )
    if args.difference_maximized:
        facts['common'] = args.common
    if presence is not None:
        facts['missing_classes'] = missing_classes(lists['labeled'], presence)
    return facts


def report(name: str, lists: Mapping[str, list], facts: Mapping) -> None:
    """Print what a set holds."""
    print(f'  {name}: ' + ', '.join(f'{len(ids)} {kind}' for kind, ids in lists.items()))
    if facts.get('missing_classes'):
        print(f'    WARNING: too small to show the classes {facts["missing_classes"]}')


def by_mask(ids: Sequence[str], args: argparse.Namespace) -> dict[str, list[str]]:
    """Lists of the images with and without a mask.

    Raises:
        ValueError: If all or none have one.
    """
    lists: dict[str, list[str]] = dict(labeled=[], unlabeled=[])
    for name in ids:
        has_mask = osp.isfile(osp.join(args.mask_dir, name + args.mask_suffix))
        lists['labeled' if has_mask else 'unlabeled'].append(name)
    for kind, names in lists.items():
        if not names:
            raise ValueError(
                f'no image would be {kind}: masks are looked for as '
                f'{osp.join(args.mask_dir, ids[0] + args.mask_suffix)} (--mask-suffix); '
                '--counts N draws N labeled ones where all have masks'
            )
    return lists


def run(args: argparse.Namespace) -> None:
    """Read, draw and write.

    Raises:
        ValueError: On ids, masks or sizes that cannot be used.
        OSError: On files that are missing, or lists that exist with other content.
    """
    ids = read_ids(args)
    presence = read_presence(ids, args) if args.class_aware else None
    sets = {'.': by_mask(ids, args)} if args.by_mask else {}
    for prefix, splits in draw(ids, presence, args).items():
        sets.update(lists_of(splits, prefix, args))
    facts = {name: describe(ids, presence, lists, args) for name, lists in sets.items()}
    files = write_splits(args.out_dir, sets, facts, args.force)
    for name, lists in sets.items():
        report(name, lists, facts[name])
    print(f'wrote {len(files)} lists and manifest.json to {args.out_dir}')


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    args = parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
