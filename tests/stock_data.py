"""Data sets of a few images in the layouts of mmseg's own configs, and where those configs lie."""

from pathlib import Path

import mmseg
import numpy as np
from PIL import Image

STOCK = Path(mmseg.__file__).parent / '.mim' / 'configs'
LABELED, UNLABELED = 3, 4


def _scene(path, mask_path, rng, size, classes):
    mask = np.zeros(size, np.uint8)
    y, x = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
    mask[y : y + size[0] // 2, x : x + size[1] // 2] = rng.integers(1, classes)
    image = (mask[..., None] * 20 + rng.integers(0, 80, (*size, 3))).astype(np.uint8)
    for file, pixels in ((path, image), (mask_path, mask)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def make_cityscapes(root, size=(64, 128)):
    """leftImg8bit and gtFine; unlabeled images in a folder of their own."""
    rng = np.random.default_rng(0)
    for split, count in (('train', LABELED), ('val', 1)):
        for index in range(count):
            name = f'town/town_{index:06d}_000019'
            _scene(
                root / f'leftImg8bit/{split}/{name}_leftImg8bit.png',
                root / f'gtFine/{split}/{name}_gtFine_labelTrainIds.png',
                rng,
                size,
                19,
            )
    make_folder(root / 'more', rng, size)
    return root


def make_ade(root, size=(64, 80)):
    """images and annotations; unlabeled images in a folder of their own."""
    rng = np.random.default_rng(0)
    for split, count in (('training', LABELED), ('validation', 1)):
        for index in range(count):
            name = f'ADE_{split}_{index:08d}'
            image = root / f'images/{split}/{name}.jpg'
            _scene(image, root / f'annotations/{split}/{name}.png', rng, size, 150)
    make_folder(root / 'more', rng, size)
    return root


def make_voc(root, size=(60, 72)):
    """VOC with two lists of masks in two folders."""
    rng = np.random.default_rng(0)
    lists = root / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    names = [f'2007_{index:06d}' for index in range(8)]
    for name in names:
        masks = root / 'SegmentationClass' / f'{name}.png'
        _scene(root / 'JPEGImages' / f'{name}.jpg', masks, rng, size, 21)
    (root / 'SegmentationClassAug').symlink_to('SegmentationClass')
    for kind, chosen in (('train', names[:3]), ('aug', names[3:7]), ('val', names[7:])):
        (lists / f'{kind}.txt').write_text(''.join(f'{name}\n' for name in chosen))
    return root


def make_folder(folder, rng, size, count=UNLABELED):
    """Images alone."""
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'image_{index}.jpg')
