"""A labeled-only config, through mmengine's own entry, from images on disk to a metric."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from PIL import Image

CONFIG = 'deeplabv3plus_mobilenetv2_msrc21-192x192.py'
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'supervised'


def make_msrc21(root):
    """The layout of the data set: two bright and two dark images a part, one labeled."""
    rng = np.random.default_rng(0)
    for part in ('train', 'val', 'test'):
        for folder in ('img', 'ann'):
            (root / folder / part).mkdir(parents=True)
        for index in range(4):
            class_id = index % 2
            image = rng.integers(0, 60, (70, 90, 3), np.uint8) + np.uint8(150 * class_id)
            mask = np.full((70, 90), class_id, np.uint8)
            mask[:5] = 255
            Image.fromarray(image).save(root / 'img' / part / f'{index}.jpg')
            Image.fromarray(mask).save(root / 'ann' / part / f'{index}.png')
    lists = root / 'splits' / '1_8' / 'fold_0'
    lists.mkdir(parents=True)
    (lists / 'labeled.txt').write_text('0\n1\n')
    (lists / 'unlabeled.txt').write_text('2\n3\n')


def test_labeled_only_run_offline(tmp_path):
    make_msrc21(tmp_path / 'data')
    cfg = Config.fromfile(CONFIGS / CONFIG)
    cfg.merge_from_dict(
        {
            # What a user without a network writes, and everything made small.
            'model.backbone.init_cfg': None,
            'model.pretrained': None,
            'data_root': str(tmp_path / 'data'),
            'crop_size': (64, 64),
            'batch_size': 2,
            'train_cfg.max_iters': 2,
            'train_cfg.val_interval': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
        }
    )
    cfg.work_dir = str(tmp_path / 'work')
    runner = RUNNERS.build(cfg)  # as mmseg's tools/train.py does
    runner.train()
    assert runner.iter == 2
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
    state = torch.load(tmp_path / 'work' / 'iter_2.pth', map_location='cpu', weights_only=True)
    assert all(key.startswith(('backbone.', 'decode_head.')) for key in state['state_dict'])
    assert len(runner.train_dataloader.dataset) == 2
