"""A dataset of a few pixels on disk, for tests that break it in one way at a time."""

from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES = 3
LABELED = ['a', 'b', 'sub/c']
UNLABELED = ['d', 'e']
VALIDATION = ['v']


class DataTree:
    """Sound images, masks and lists below ``root``; masks of every image, though unlabeled."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        rng = np.random.default_rng(0)
        for name in LABELED + UNLABELED + VALIDATION:
            self.write_image(name, rng.integers(0, 256, (40, 48, 3), np.uint8))
            self.write_mask(name, rng.integers(0, NUM_CLASSES, (40, 48), np.uint8))
        self.write_list('labeled', LABELED)
        self.write_list('unlabeled', UNLABELED)
        self.write_list('val', VALIDATION)

    def image(self, name: str) -> Path:
        return self.root / 'img' / f'{name}.jpg'

    def mask(self, name: str) -> Path:
        return self.root / 'ann' / f'{name}.png'

    def list(self, kind: str) -> Path:
        return self.root / f'{kind}.txt'

    def write_image(self, name: str, pixels: np.ndarray, **options) -> None:
        self.image(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.image(name), **options)

    def write_mask(self, name: str, pixels: np.ndarray) -> None:
        self.mask(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.mask(name))

    def write_list(self, kind: str, names) -> None:
        self.list(kind).write_text(''.join(f'{name}\n' for name in names))

    def config(self, kind: str, **settings) -> dict:
        """Config of one source; the unlabeled one names no mask folder."""
        prefix = dict(img_path='img')
        if kind != 'unlabeled':
            prefix['seg_map_path'] = 'ann'
        config = dict(
            type='mmseg.BaseSegDataset',
            data_root=str(self.root),
            ann_file=f'{kind}.txt',
            data_prefix=prefix,
            metainfo=dict(
                classes=[f'class {c}' for c in range(NUM_CLASSES)],
                palette=[[c, c, c] for c in range(NUM_CLASSES)],
            ),
        )
        return dict(config, **settings)

    def train_config(self, **labeled_settings) -> dict:
        sources = [self.config('labeled', **labeled_settings), self.config('unlabeled')]
        return dict(type='ConcatDataset', datasets=sources)
