"""Four-band uint16 GeoTIFFs with masks, and a config that trains on them."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from tiny_project import SIZE, base_config

MEAN, STD, RANGE = [3000.0] * 4, [1500.0] * 4, ([0] * 4, [10000] * 4)


def write_geotiff(path, pixels, nodata=None, crs='EPSG:32632'):
    """Write (H, W, C) pixels with a georeference."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    profile = dict(
        driver='GTiff',
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=pixels.shape[2],
        dtype=pixels.dtype,
        crs=crs,
        transform=from_origin(500000, 5000000, 10, 10),
        nodata=nodata,
        tiled=True,
        blockxsize=16,
        blockysize=16,
    )
    with rasterio.open(path, 'w', **profile) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return Path(path)


def make_tree(root, size=SIZE, blank=0):
    """Images whose bands are levels of the class, 0/255 masks, and lists.

    In the first ``blank`` rows nothing was measured.
    """
    rng = np.random.default_rng(0)
    root = Path(root)
    for folder in ('img', 'ann'):
        (root / folder).mkdir(parents=True)
    levels = np.array([[2000, 2000, 2000, 6000], [2500, 5000, 3000, 1000]])
    for split, count in (('labeled', 3), ('unlabeled', 4), ('val', 2)):
        names = [f'{split}_{index}' for index in range(count)]
        for name in names:
            mask = np.zeros((size, size), np.uint8)
            y, x = rng.integers(0, size // 2, 2)
            mask[y : y + size // 2, x : x + size // 2] = 1
            image = levels[mask] + rng.normal(0, 300, (size, size, 4))
            image = image.clip(1, 65535).astype(np.uint16)
            image[:blank] = 0
            write_geotiff(root / 'img' / f'{name}.tif', image, nodata=0 if blank else None)
            if split != 'unlabeled':
                write_geotiff(root / 'ann' / f'{name}.tif', mask * 255)
        (root / f'{split}.txt').write_text('\n'.join(names) + '\n')
    return root


def bands_config(root, work_dir, max_iters=2, **load):
    """Training of a plain segmentor on these images."""
    cfg = base_config(root, work_dir, max_iters=max_iters, interval=max_iters)
    values = {0: 'background', 255: 'object'}
    datasets = [*cfg['train_dataloader']['dataset']['datasets'], cfg['val_dataloader']['dataset']]
    for dataset in datasets:
        dataset['img_suffix'] = '.tif'
        steps = []
        for step in dataset['pipeline']:
            if step['type'] == 'LoadImageFromFile':
                step = dict(type='mmdmt.LoadBands', **load)
            elif step['type'] == 'LoadAnnotations':
                step = dict(type='mmdmt.LoadMasks', mask_values=values)
            steps.append(step)
        dataset['pipeline'] = steps
        if dataset['type'] == 'BaseSegDataset':
            dataset.update(seg_map_suffix='.tif', metainfo=dict(classes=tuple(values.values())))
    model = cfg['model']
    model['backbone']['in_channels'] = 4
    model['decode_head']['num_classes'] = 2
    model['data_preprocessor'] = dict(
        type='mmdmt.PaddingPreprocessor', size=(24, 24), mean=MEAN, std=STD, value_range=RANGE
    )
    return cfg
