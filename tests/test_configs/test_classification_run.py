"""The config for one's own images as the guide uses it, from folders to a test accuracy."""

import copy
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS
from tiny_classification import make_folders

from mmdmt.config import resolve_config

pytestmark = pytest.mark.usefixtures('unformatted_configs')
CONFIG = 'dmt_wrn-28-2_labeled_folder-64x64.py'
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'dmt_classification'


def small(root, work_dir, **more):
    """What a user sets, and everything made small."""
    cfg = Config.fromfile(CONFIGS / CONFIG)
    lists = {f'{kind}_list': f'{kind}.txt' for kind in ('labeled', 'unlabeled')}
    cfg.merge_from_dict(
        {
            'data_root': str(root),
            **lists,
            'num_classes': 3,
            'model.head.in_channels': 64,
            'model.backbone.depth': 10,
            'model.backbone.widen_factor': 1,
            'image_size': (10, 10),
            'crop_size': (8, 8),
            'batch_size': 4,
            'val_list': 'val.txt',
            'mutual.supervised.max_iters': 2,
            'mutual.ratios': [1.0],
            'mutual.round.max_iters': [2],
            'mutual.labeling': dict(num_workers=0),
            **more,
        }
    )
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)
    resolve_config(cfg)
    cfg.work_dir = str(work_dir)
    return cfg


def test_own_images_from_folders_to_accuracy(tmp_path):
    root = make_folders(tmp_path / 'data')
    entries = RUNNERS.build(small(root, tmp_path / 'work')).train()  # as stock tools/train.py does
    assert [entry['state'] for entry in entries.values()] == ['done'] * 2
    stage = tmp_path / 'work' / 'stage_1_a'
    cfg = Config.fromfile(str(stage / 'config.py'))
    cfg.update(load_from=str(stage / 'iter_2.pth'), resume=False)
    assert 0 <= RUNNERS.build(cfg).test()['accuracy/top1'] <= 100


def test_a_round_may_go_on_with_the_weights_before(tmp_path):
    from mmdmt.engine.mutual import build_stage_config_builder

    cfg = small(make_folders(tmp_path / 'data'), tmp_path, **{'mutual.round.from_scratch': False})
    builder = build_stage_config_builder(copy.deepcopy(cfg))
    stage = builder.build(builder.plan.stages[1], '/s', load_from='before.pth')
    assert stage.load_from == 'before.pth'
