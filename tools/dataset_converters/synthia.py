"""Make the masks of the training classes of Cityscapes for SYNTHIA-RAND-CITYSCAPES, and its list.

Usage::

python tools/dataset_converters/synthia.py data/RAND_CITYSCAPES

The folder holds ``RGB/*.png`` and ``GT/LABELS/*.png`` (16 bits, the class in the first channel,
the instance in the second) as they come from the archive. The tool writes
``GT/LABELS/*_labelTrainIds.png`` and ``train.txt`` (``0000000`` and so on). Terrain, truck and
train have an id but no pixel in the published images: 16 of the 19 classes can be learned.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from mmdmt.datasets.conversion import (
    TRAIN_IDS,
    ConversionError,
    Job,
    convert_all,
    map_ids,
    paired,
)
from mmdmt.datasets.splits.files import write_list

# Classes of SYNTHIA in the order of their ids; parking slot, road work and lane marking are none of
# Cityscapes.
CLASSES = (
    'void', 'sky', 'building', 'road', 'sidewalk', 'fence', 'vegetation', 'pole', 'car',
    'traffic sign', 'person', 'bicycle', 'motorcycle', 'parking slot', 'road work',
    'traffic light', 'terrain', 'rider', 'truck', 'bus', 'train', 'wall', 'lane marking',
)  # fmt: skip
TRAIN_CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train',
    'motorcycle', 'bicycle',
)  # fmt: skip
TRAIN_ID_OF = {CLASSES.index(name): train_id for train_id, name in enumerate(TRAIN_CLASSES)}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Training ids and list of SYNTHIA-RAND-CITYSCAPES')
    parser.add_argument('root', type=Path, help='folder with RGB and GT')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing masks again')
    return parser.parse_args(argv)


def read_classes(path: Path) -> np.ndarray:
    """Ids (H, W) uint16 of a label file. Pillow would cut its channels to 8 bits."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        found = 'not an image' if pixels is None else f'{pixels.dtype} of shape {pixels.shape}'
        raise ConversionError(
            f'{path} is {found}, a label of SYNTHIA has 16 bits and 3 channels: take GT/LABELS'
        )
    return pixels[..., 2]  # OpenCV turns the channels around


def train_ids(path: Path) -> np.ndarray:
    """Training ids (H, W) uint8 of a label file; 255 for what is not a training class."""
    ids = read_classes(path)
    unknown = np.unique(ids[ids >= len(CLASSES)]).tolist()
    if unknown:
        raise ConversionError(f'{path} has the ids {unknown}; SYNTHIA has 0 to {len(CLASSES) - 1}')
    return map_ids(ids, TRAIN_ID_OF)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    labels = args.root / 'GT' / 'LABELS'
    try:
        names = paired(args.root / 'RGB', labels)
        jobs = [
            Job(labels / f'{name}{TRAIN_IDS}', train_ids, (labels / f'{name}.png',))
            for name in names
        ]
        convert_all(jobs, args.workers, args.overwrite, 'synthia')
    except ConversionError as error:
        sys.exit(str(error))
    write_list(args.root / 'train.txt', names)
    print(f'{len(names)} images in {args.root / "train.txt"} (9400 in the complete dataset)')


if __name__ == '__main__':
    main()
