"""Make SegmentationClassAug, the masks of PASCAL VOC 2012 and SBD together.

Usage::

python tools/dataset_converters/voc_aug.py data/VOCdevkit/VOC2012 data/benchmark_RELEASE/dataset

writes ``SegmentationClassAug/*.png`` and ``ImageSets/Segmentation/trainaug.txt`` below the VOC
folder: the images of VOC train and of SBD without those of VOC val, 10582 with the complete
datasets, in sorted order. Where VOC has a mask of its own, that one is taken.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from mmdmt.datasets.conversion import ConversionError, Job, convert_all, read_ids, require_folder
from mmdmt.datasets.splits.files import read_list, write_list

LISTS = Path('ImageSets') / 'Segmentation'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Masks of PASCAL VOC 2012 and SBD together')
    parser.add_argument('voc', type=Path, help='VOCdevkit/VOC2012')
    parser.add_argument('sbd', type=Path, help='benchmark_RELEASE/dataset, with cls/ and lists')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing masks again')
    return parser.parse_args(argv)


def read_sbd(path: Path) -> np.ndarray:
    """Class ids (H, W) uint8 of an SBD annotation file."""
    from scipy.io import loadmat

    content = loadmat(path, squeeze_me=True, struct_as_record=False)
    if 'GTcls' not in content:
        raise ConversionError(f'{path} has no GTcls; is it from the folder cls of SBD?')
    return np.asarray(content['GTcls'].Segmentation, dtype=np.uint8)


def plan(voc: Path, sbd: Path) -> Iterator[Job]:
    """One job per image of trainaug, in sorted order."""
    masks = require_folder(voc / 'SegmentationClass', 'the masks of VOC 2012')
    annotations = require_folder(sbd / 'cls', 'the annotations of SBD')
    train = set(read_list(voc / LISTS / 'train.txt'))
    in_sbd = {name for part in ('train', 'val') for name in read_list(sbd / f'{part}.txt')}
    for name in sorted((train | in_sbd) - set(read_list(voc / LISTS / 'val.txt'))):
        output = voc / 'SegmentationClassAug' / f'{name}.png'
        if name in train:
            yield Job(output, read_ids, (masks / f'{name}.png',))
        else:
            yield Job(output, read_sbd, (annotations / f'{name}.mat',))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        sys.exit('SBD annotations are MATLAB files: pip install scipy')
    try:
        jobs = list(plan(args.voc, args.sbd))
        convert_all(jobs, args.workers, args.overwrite, 'masks')
    except (ConversionError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    path = args.voc / LISTS / 'trainaug.txt'
    write_list(path, [job.output.stem for job in jobs])
    print(f'{len(jobs)} images in {path} (10582 with the complete datasets)')


if __name__ == '__main__':
    main()
