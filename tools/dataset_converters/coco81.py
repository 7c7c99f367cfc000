"""Make masks of 81 classes from COCO's instance annotations: 80 object classes and background.

Usage::

python tools/dataset_converters/coco81.py data/coco/annotations/instances_train2017.json \
    data/coco/masks81/train2017
python tools/dataset_converters/coco81.py data/coco/annotations/instances_val2017.json \
    data/coco/masks81/val2017

An image without any annotation gets a mask of background alone. pycocotools is not needed.

Where things overlap, the smaller one is on top, and of equal ones that with the later annotation.
Regions marked as a crowd (``iscrowd``) are 255 where no single object covers them. Polygons are
filled where they cover the center of a pixel; pycocotools differs by single pixels of the outline.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

import cv2
import numpy as np

from mmdmt.datasets.conversion import ConversionError, Job, convert_all

# COCO numbers its 80 object categories from 1 to 90 and leaves these out.
UNUSED_CATEGORIES = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORIES = [number for number in range(1, 91) if number not in UNUSED_CATEGORIES]
CLASS_OF = {category: number for number, category in enumerate(CATEGORIES, start=1)}
IGNORED = 255
FINER = 9  # odd, so that pixels have a center on the finer grid


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Masks of 81 classes from COCO instances')
    parser.add_argument('annotations', type=Path, help='instances_{train,val}2017.json')
    parser.add_argument('out', type=Path, help='folder for the masks')
    parser.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='make existing masks again')
    return parser.parse_args(argv)


def decode_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed string.

    Each character holds 5 bits, lowest first, and bit 6 tells whether the number goes on; the
    sign is bit 5 of the last one. From the fourth on, numbers are differences to that two before.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts


def runs_to_mask(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """Boolean mask (H, W) of run lengths that go down the columns, first 0, then 1, ..."""
    if sum(counts) != height * width:
        raise ConversionError(f'run lengths sum to {sum(counts)}, not to {height} * {width}')
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def polygons_to_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Boolean mask (H, W) of the union of polygons ``[x0, y0, x1, y1, ...]``.

    A pixel belongs to a polygon if its center does.
    """
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        left, top = np.clip(np.floor(points.min(axis=0)).astype(int), 0, (width, height))
        right, bottom = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, 0, (width, height))
        if right > left and bottom > top:
            filled = _fill(points - (left, top), bottom - top, right - left)
            mask[top:bottom, left:right] |= filled
    return mask


def _fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boolean mask (H, W) of one polygon.

    OpenCV fills the pixels of the outline too, which makes small things fat. So it draws on a
    finer grid, of which the centers of the pixels are kept.
    """
    canvas = np.zeros((height * FINER, width * FINER), dtype=np.uint8)
    # Half a pixel off: COCO counts from the corner of the first pixel, OpenCV from its center.
    cv2.fillPoly(canvas, [np.round(points * FINER - 0.5).astype(np.int32)], 1)
    return canvas[FINER // 2 :: FINER, FINER // 2 :: FINER].astype(bool)


def region_mask(segmentation: Union[list, dict], height: int, width: int) -> np.ndarray:
    """Boolean mask (H, W) of polygons, run lengths or a compressed string of run lengths."""
    if isinstance(segmentation, list):
        return polygons_to_mask(segmentation, height, width)
    counts = segmentation['counts']
    if list(segmentation['size']) != [height, width]:
        raise ConversionError(
            f'run lengths of size {segmentation["size"]} in an image of {[height, width]}'
        )
    return runs_to_mask(decode_counts(counts) if isinstance(counts, str) else counts, height, width)


def paint(height: int, width: int, annotations: Sequence[dict]) -> np.ndarray:
    """Class ids (H, W) uint8 of the annotations of one image."""
    mask = np.zeros((height, width), dtype=np.uint8)
    regions = []
    for annotation in annotations:
        region = region_mask(annotation['segmentation'], height, width)
        crowd = bool(annotation.get('iscrowd'))
        value = IGNORED if crowd else CLASS_OF[annotation['category_id']]
        regions.append((not crowd, -int(region.sum()), value, region))
    for *_, value, region in sorted(regions, key=lambda item: item[:2]):
        mask[region] = value
    return mask


def plan(annotations: Path, out: Path) -> Iterator[Job]:
    """One job per image."""
    if not annotations.is_file():
        raise ConversionError(f'{annotations} does not exist')
    print(f'reading {annotations} ...', flush=True)
    content = json.loads(annotations.read_text(encoding='utf-8'))
    for key in ('images', 'annotations'):
        if key not in content:
            raise ConversionError(f'{annotations} has no `{key}`; is it an instances_*.json?')
    of_image = defaultdict(list)
    for annotation in content['annotations']:
        if annotation['category_id'] not in CLASS_OF:
            raise ConversionError(
                f'annotation {annotation.get("id")} of {annotations} has the category '
                f'{annotation["category_id"]}, which is none of the 80 of COCO'
            )
        of_image[annotation['image_id']].append(annotation)
    for image in content['images']:
        output = out / f'{Path(image["file_name"]).stem}.png'
        yield Job(output, paint, (image['height'], image['width'], of_image[image['id']]))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert."""
    args = parse_args(argv)
    try:
        jobs = list(plan(args.annotations, args.out))
        convert_all(jobs, args.workers, args.overwrite, args.out.name)
    except ConversionError as error:
        sys.exit(str(error))
    print(f'{len(jobs)} masks in {args.out}')


if __name__ == '__main__':
    main()
