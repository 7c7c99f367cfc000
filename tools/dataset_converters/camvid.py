"""Make CamVid with the 11 classes, the split and the size of SegNet from the original files.

Usage::

python tools/dataset_converters/camvid.py 701_StillsRaw_full LabeledApproved_full data/camvid

writes ``img/{train,val,test}/*.png`` and ``ann/{train,val,test}/*.png``, 480x360 unless ``--size``
says otherwise. Classes: see ``CLASSES``; everything else is 255.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from mmdmt.datasets.conversion import ConversionError, Job, convert_all, require_folder

# Colors of the original 32 classes, joined to the 11 classes that SegNet and its successors use.
CLASSES = {
    'sky': {'Sky': (128, 128, 128)},
    'building': {
        'Archway': (192, 0, 128),
        'Bridge': (0, 128, 64),
        'Building': (128, 0, 0),
        'Tunnel': (64, 0, 64),
        'Wall': (64, 192, 0),
    },
    'pole': {'Column_Pole': (192, 192, 128), 'TrafficCone': (0, 0, 64)},
    'road': {
        'LaneMkgsDriv': (128, 0, 192),
        'LaneMkgsNonDriv': (192, 0, 64),
        'Road': (128, 64, 128),
    },
    'pavement': {
        'ParkingBlock': (64, 192, 128),
        'RoadShoulder': (128, 128, 192),
        'Sidewalk': (0, 0, 192),
    },
    'tree': {'Tree': (128, 128, 0), 'VegetationMisc': (192, 192, 0)},
    'sign': {
        'Misc_Text': (128, 128, 64),
        'SignSymbol': (192, 128, 128),
        'TrafficLight': (0, 64, 64),
    },
    'fence': {'Fence': (64, 64, 128)},
    'car': {
        'Car': (64, 0, 128),
        'OtherMoving': (128, 64, 64),
        'SUVPickupTruck': (64, 128, 192),
        'Train': (192, 64, 128),
        'Truck_Bus': (192, 128, 192),
    },
    'pedestrian': {
        'Animal': (64, 128, 64),
        'CartLuggagePram': (64, 0, 192),
        'Child': (192, 128, 64),
        'Pedestrian': (64, 64, 0),
    },
    'bicyclist': {'Bicyclist': (0, 128, 192), 'MotorcycleScooter': (192, 0, 192)},
}
VOID = (0, 0, 0)
SPLITS = ('train', 'val', 'test')
MAX_UNKNOWN_SHARE = 0.001
# The published lists follow the sequences: the last frame of 0001TP in training, and the clip of
# 0016E5 that is annotated at 15 frames a second.
LAST_TRAINING_FRAME_0001TP = 8520
VALIDATION_CLIP_0016E5 = range(7959, 8160)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='CamVid with the 11 classes of SegNet')
    parser.add_argument('images', type=Path, help='701_StillsRaw_full')
    parser.add_argument('labels', type=Path, help='LabeledApproved_full, with *_L.png')
    parser.add_argument('out', type=Path, help='data_root to make')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(480, 360), metavar=('W', 'H'), help='(480 360)'
    )
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing files again')
    return parser.parse_args(argv)


def split_of(name: str) -> str:
    """Part of SegNet's split that an image such as ``0001TP_006690`` belongs to."""
    sequence, _, frame = name.partition('_')
    number = int(frame.lstrip('f'))
    if sequence == 'Seq05VD':
        return 'test'
    if sequence == '0001TP':
        return 'train' if number <= LAST_TRAINING_FRAME_0001TP else 'test'
    if sequence == '0016E5' and number in VALIDATION_CLIP_0016E5:
        return 'val'
    if sequence in ('0016E5', '0006R0'):
        return 'train'
    raise ConversionError(f'{name} is of no sequence of CamVid')


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """RGB pixels of an image at another size."""
    with Image.open(path) as image:
        return np.array(image.convert('RGB').resize(size, Image.Resampling.BOX))


def read_label(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Class ids of a color label at another size."""
    with Image.open(path) as image:
        colors = np.array(image.convert('RGB').resize(size, Image.Resampling.NEAREST), np.int32)
    codes = _code(colors)
    ids = np.full(codes.shape, 255, dtype=np.uint8)
    known = codes == _code(np.array(VOID))
    for number, members in enumerate(CLASSES.values()):
        mine = np.isin(codes, [_code(np.array(color)) for color in members.values()])
        ids[mine] = number
        known |= mine
    unknown = 1 - known.mean()
    if unknown > MAX_UNKNOWN_SHARE:
        raise ConversionError(f'{path}: {unknown:.1%} of the pixels have no color of CamVid')
    return ids


def _code(colors: np.ndarray) -> np.ndarray:
    """One number for each color along the last axis."""
    return (colors[..., 0] * 256 + colors[..., 1]) * 256 + colors[..., 2]


def plan(args: argparse.Namespace) -> Iterator[Job]:
    """Two jobs per image."""
    require_folder(args.images, 'the images (701_StillsRaw_full)')
    labels = sorted(require_folder(args.labels, 'the labels').glob('*_L.png'))
    if not labels:
        raise ConversionError(f'{args.labels} has no file *_L.png')
    size = tuple(args.size)
    for label in labels:
        name = label.name[: -len('_L.png')]
        image = args.images / f'{name}.png'
        if not image.is_file():
            raise ConversionError(f'{image} does not exist, but {label} does')
        split = split_of(name)
        yield Job(args.out / 'img' / split / f'{name}.png', read_image, (image, size))
        yield Job(args.out / 'ann' / split / f'{name}.png', read_label, (label, size))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    try:
        jobs = list(plan(args))
        convert_all(jobs, args.workers, args.overwrite, 'camvid')
    except ConversionError as error:
        sys.exit(str(error))
    counts = {s: sum(job.output.parent.name == s for job in jobs) // 2 for s in SPLITS}
    print(f'{counts} images in {args.out} (367, 101, 233 with the complete dataset)')


if __name__ == '__main__':
    main()
