"""Make masks of class ids for Kvasir-SEG, and lists of its images.

Usage::

python tools/dataset_converters/kvasir_seg.py data/Kvasir-SEG --lists FOLDER

The folder holds ``images/*.jpg`` and ``masks/*.jpg`` as they come from the archive. The masks are
JPEG files with values near 0 and 255. The tool writes ``masks_png/*.png`` (0 background, 1 polyp),
``train.txt`` and ``val.txt``: the names of the published lists of this name (880 and 120 images)
in the folder of ``--lists``, or without it a seeded draw of 12 % for validation.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from mmdmt.datasets.conversion import ConversionError, Job, convert_all, paired
from mmdmt.datasets.splits.files import read_list, write_list

VALIDATION_SHARE = 0.12
# A photograph taken for a mask has most of its pixels in between.
BETWEEN = (64, 192)
MAX_BETWEEN_SHARE = 0.2


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Masks and lists of Kvasir-SEG')
    parser.add_argument('root', type=Path, help='folder with images and masks')
    parser.add_argument('--lists', type=Path, help='folder of the published train.txt and val.txt')
    parser.add_argument('--seed', type=int, default=0, help='of the draw without lists (0)')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing masks again')
    return parser.parse_args(argv)


def read_mask(path: Path) -> np.ndarray:
    """Class ids (H, W) uint8, 1 where a JPEG mask is at least half bright."""
    with Image.open(path) as image:
        gray = np.array(image.convert('L'))
    share = ((gray > BETWEEN[0]) & (gray < BETWEEN[1])).mean()
    if share > MAX_BETWEEN_SHARE:
        raise ConversionError(
            f'{path}: {share:.0%} of the pixels are neither near 0 nor near 255; is it a mask?'
        )
    return (gray >= 128).astype(np.uint8)


def split(names: Sequence[str], args: argparse.Namespace) -> dict[str, list[str]]:
    """Names for training and validation, from the lists or drawn."""
    if args.lists is None:
        held_out = random.Random(args.seed).sample(names, round(VALIDATION_SHARE * len(names)))
        val = sorted(held_out)
        return dict(train=sorted(set(names) - set(val)), val=val)
    lists = {}
    for part in ('train', 'val'):
        path = args.lists / f'{part}.txt'
        lists[part] = [name.removesuffix('.jpg') for name in read_list(path)]
        unknown = sorted(set(lists[part]) - set(names))
        if unknown:
            raise ConversionError(
                f'{path} lists {len(unknown)} names without a mask, first {unknown[0]}'
            )
    both = sorted(set(lists['train']) & set(lists['val']))
    if both:
        raise ConversionError(f'{args.lists} has {both[0]} in train.txt and in val.txt')
    return lists


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    try:
        names = paired(args.root / 'images', args.root / 'masks', '.jpg')
        lists = split(names, args)
        jobs = [
            Job(
                args.root / 'masks_png' / f'{name}.png',
                read_mask,
                (args.root / f'masks/{name}.jpg',),
            )
            for name in names
        ]
        convert_all(jobs, args.workers, args.overwrite, 'kvasir-seg')
    except (ConversionError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    for part, listed in lists.items():
        write_list(args.root / f'{part}.txt', listed)
    counts = {part: len(listed) for part, listed in lists.items()}
    print(f'{counts} images in {args.root} (880 and 120 with the published lists)')


if __name__ == '__main__':
    main()
