"""Make the masks of the 19 training classes of Cityscapes for GTA5, and the list of its images.

Usage::

python tools/dataset_converters/gta5.py data/gta5

The folder holds ``images/*.png`` and ``labels/*.png`` (palette, ids of Cityscapes) as they come
from the archives. The tool writes ``labels/*_labelTrainIds.png`` and ``train.txt`` (``00001``
and so on). A pair whose image and label have different sizes is named and left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from mmdmt.datasets.conversion import (
    CITYSCAPES_TRAIN_IDS,
    TRAIN_IDS,
    ConversionError,
    Job,
    convert_all,
    image_size,
    map_ids,
    paired,
    read_ids,
)
from mmdmt.datasets.splits.files import write_list

# 34 is the license plate, -1 in the definition of Cityscapes.
KNOWN = {*range(35), 255}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Training ids and list of GTA5')
    parser.add_argument('root', type=Path, help='folder with images and labels')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing masks again')
    return parser.parse_args(argv)


def train_ids(path: Path) -> np.ndarray:
    """Training ids (H, W) uint8 of a file of ids; 255 for what is not a training class."""
    ids = read_ids(path)
    unknown = sorted(set(np.unique(ids).tolist()) - KNOWN)
    if unknown:
        raise ConversionError(f'{path} has the ids {unknown}; GTA5 has 0 to 34, as Cityscapes')
    return map_ids(ids, CITYSCAPES_TRAIN_IDS)


def of_one_size(root: Path, names: Sequence[str]) -> list[str]:
    """Names whose image and label have the same size; the others are printed."""
    found = []
    for name in names:
        image, label = (image_size(root / kind / f'{name}.png') for kind in ('images', 'labels'))
        if image == label:
            found.append(name)
        else:
            sizes = '{}x{}, its label {}x{}'.format(*image, *label)
            print(f'left out: {root / "images" / name}.png is {sizes}')
    return found


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    labels = args.root / 'labels'
    try:
        names = of_one_size(args.root, paired(args.root / 'images', labels))
        jobs = [
            Job(labels / f'{name}{TRAIN_IDS}', train_ids, (labels / f'{name}.png',))
            for name in names
        ]
        convert_all(jobs, args.workers, args.overwrite, 'gta5')
    except ConversionError as error:
        sys.exit(str(error))
    write_list(args.root / 'train.txt', names)
    print(f'{len(names)} images in {args.root / "train.txt"} (24966 pairs in the complete dataset)')


if __name__ == '__main__':
    main()
