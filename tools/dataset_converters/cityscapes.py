"""Make the masks of the 19 training classes of Cityscapes, and lists of its images.

Usage::

python tools/dataset_converters/cityscapes.py data/cityscapes

writes ``*_gtFine_labelTrainIds.png`` beside each ``*_gtFine_labelIds.png`` of train and val, and
``train.txt`` and ``val.txt`` (``aachen/aachen_000000_000019``, ..., sorted by city). The package
cityscapesscripts is not needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from mmdmt.datasets.conversion import (
    CITYSCAPES_TRAIN_IDS,
    ConversionError,
    Job,
    convert_all,
    map_ids,
    read_ids,
    require_folder,
)
from mmdmt.datasets.splits.files import write_list

LICENSE_PLATE = 255  # -1 in the definition
NUM_IDS = 34
SPLITS = ('train', 'val')
SOURCE, TARGET, IMAGE = '_gtFine_labelIds.png', '_gtFine_labelTrainIds.png', '_leftImg8bit.png'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Training ids and lists of Cityscapes')
    parser.add_argument('root', type=Path, help='folder with leftImg8bit and gtFine')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing masks again')
    return parser.parse_args(argv)


def train_ids(path: Path) -> np.ndarray:
    """Training ids (H, W) uint8 of a file of ids; 255 for what is not a training class."""
    ids = read_ids(path)
    unknown = sorted(set(np.unique(ids).tolist()) - {*range(NUM_IDS), LICENSE_PLATE})
    if unknown:
        raise ConversionError(f'{path} has the ids {unknown}; Cityscapes has 0 to {NUM_IDS - 1}')
    return map_ids(ids, CITYSCAPES_TRAIN_IDS)


def plan(root: Path, split: str) -> dict[str, Job]:
    """One job per image of a split, by name, sorted by city and file."""
    masks = require_folder(root / 'gtFine' / split, 'the annotations (gtFine)')
    images = require_folder(root / 'leftImg8bit' / split, 'the images (leftImg8bit)')
    jobs = {}
    for path in sorted(masks.glob(f'*/*{SOURCE}')):
        name = f'{path.parent.name}/{path.name[: -len(SOURCE)]}'
        jobs[name] = Job(masks / f'{name}{TARGET}', train_ids, (path,))
    if not jobs:
        raise ConversionError(f'{masks} has no file <city>/*{SOURCE}')
    missing = [name for name in jobs if not (images / f'{name}{IMAGE}').is_file()]
    if missing:
        raise ConversionError(
            f'{len(missing)} annotated images are not in {images}, first {missing[0]}{IMAGE}'
        )
    return jobs


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    try:
        for split in SPLITS:
            jobs = plan(args.root, split)
            convert_all(jobs.values(), args.workers, args.overwrite, split)
            write_list(args.root / f'{split}.txt', jobs)
            print(f'{len(jobs)} images in {args.root / split}.txt')
    except ConversionError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
