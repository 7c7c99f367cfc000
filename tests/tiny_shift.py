"""Tiny trees of GTA5, SYNTHIA and Cityscapes as they are published, and configs of shifts."""

import itertools
import runpy

import cv2
import numpy as np
from mmengine.config import Config
from PIL import Image
from tiny_models import tiny_segmentor
from tiny_project import ROOT

CONVERTERS = ROOT / 'tools' / 'dataset_converters'
ROAD, SKY, CAR = 0, 10, 13  # training ids
_numbers = itertools.count()


def scene(rng, size, dark=0):
    """Image (H, W, 3) of sky over road with a car, and its training ids (H, W)."""
    width, height = size
    mask = np.full((height, width), SKY)
    mask[height // 2 :] = ROAD
    left = int(rng.integers(0, width - 12))
    mask[height // 2 - 4 : height // 2 + 6, left : left + 12] = CAR
    colors = {ROAD: (90, 90, 90), SKY: (120, 160, 220), CAR: (200, 40, 40)}
    image = np.zeros((height, width, 3))
    for number, color in colors.items():
        image[mask == number] = color
    image += rng.normal(-dark, 12, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def convert(name, root):
    runpy.run_path(str(CONVERTERS / f'{name}.py'))['main']([str(root)])
    return root


def make_gta5(root, count=4, raw=False):
    """Palette labels with the ids of Cityscapes; one pair of two sizes."""
    rng, ids = np.random.default_rng(1), {ROAD: 7, SKY: 23, CAR: 26}
    for number in range(count + 1):
        image, mask = scene(rng, (60, 33))
        save(root / f'images/{number:05}.png', image)
        label = np.vectorize(ids.get)(mask).astype(np.uint8)
        label = label[:-1] if number == count else label
        (root / 'labels').mkdir(exist_ok=True)
        palette = Image.fromarray(label).convert('P')
        palette.putdata(label.ravel().tolist())
        palette.save(root / f'labels/{number:05}.png')
    return root if raw else convert('gta5', root)


def make_synthia(root, count=4, raw=False):
    """Labels of 16 bits, with instances in the second channel."""
    rng, ids = np.random.default_rng(2), {ROAD: 3, SKY: 1, CAR: 8}
    (root / 'GT/LABELS').mkdir(parents=True)
    for number in range(count):
        image, mask = scene(rng, (40, 24))
        save(root / f'RGB/{number:07}.png', image)
        label = np.zeros((*mask.shape, 3), np.uint16)
        label[..., 2], label[..., 1] = np.vectorize(ids.get)(mask), 700
        cv2.imwrite(str(root / f'GT/LABELS/{number:07}.png'), label)
    return root if raw else convert('synthia', root)


def make_cities(root, train=6, val=2, raw=False):
    """Darker scenes in the folders of Cityscapes; training images get labels that nobody reads."""
    rng, ids = np.random.default_rng(3), {ROAD: 7, SKY: 23, CAR: 26}
    for split, count in (('train', train), ('val', val)):
        for number in range(count):
            image, mask = scene(rng, (64, 32), dark=40)
            name = f'{split}/ulm/ulm_{number}'
            save(root / f'leftImg8bit/{name}_leftImg8bit.png', image)
            save(root / f'gtFine/{name}_gtFine_labelIds.png', np.vectorize(ids.get)(mask))
    return root if raw else convert('cityscapes', root)


def shift_config(dataset, labeled, cities, work_dir, **keys):
    """Config of a shift: the shipped data, small, with a tiny network of 19 classes."""
    bases = [
        ROOT / f'configs/_base_/{name}.py' for name in (f'datasets/{dataset}', 'default_runtime')
    ]
    steps = 4
    cfg = dict(
        labeled_root=str(labeled),
        data_root=str(cities),
        image_size=(64, 32),
        labeled_image_size=(48, 36),
        crop_size=(24, 24),
        batch_size=4,
        source_ratio=[1, 1],
        work_dir=str(work_dir),
        model=tiny_segmentor(num_classes=19),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05)),
        param_scheduler=[dict(type='PolyLR', begin=0, end=steps, by_epoch=False)],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        default_hooks=dict(checkpoint=dict(interval=steps), logger=dict(interval=1)),
        **{
            f'{loader}_dataloader': dict(num_workers=0, persistent_workers=False)
            for loader in ('train', 'val', 'test')
        },
    )
    cfg['model']['data_preprocessor']['size'] = (24, 24)
    cfg.update(keys)
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / 'config.py'
    path.write_text(f'_base_ = {[str(base) for base in bases]}\n{Config(cfg).pretty_text}')
    read = Config.fromfile(path)
    read.experiment_name = f'shift_{next(_numbers)}'
    return read
