"""Four-band uint16 TIFFs with 0/255 masks train with online and offline methods."""

import pytest
import torch
from mmengine.registry import RUNNERS
from tiny_bands import bands_config, make_tree
from tiny_models import tiny_segmentor
from tiny_project import SIZE, labeled_only, load_config, mutual, online

from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo import PseudoLabelStore


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('bands') / 'data')


def trained(cfg, tmp_path):
    cfg = load_config(cfg, tmp_path / 'config.py')
    runner = RUNNERS.build(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('method', 'settings'),
    [
        ('MeanTeacher', dict(threshold=0.51, mix=dict(type='mmdmt.CutMix'))),
        ('UniMatch', dict(threshold=0.51, unsup_loss=['ce', 'dice'])),
    ],
)
def test_online_methods(tree, tmp_path, method, settings):
    strong = dict(type='mmdmt.StrongAugment', rgb_bands=(2, 1, 0), noise=0.02)
    cfg = bands_config(tree, tmp_path / 'work', window=(28, 28))
    cfg = online(cfg, f'mmdmt.{method}', strong=strong, **settings)
    runner = trained(cfg, tmp_path)
    student = runner.model.student
    assert student.backbone.conv1.weight.shape[1] == 4
    assert all(value.isfinite().all() for value in student.parameters())
    assert runner.iter == 2
    assert runner.message_hub.get_scalar('train/unsup_loss').current() >= 0


def test_a_labeled_run_starts_from_rgb_weights_and_learns_the_bands(tree, tmp_path):
    torch.manual_seed(0)
    narrow = build_segmentor(tiny_segmentor(num_classes=2))
    torch.save(dict(state_dict=narrow.state_dict()), tmp_path / 'rgb.pth')
    cfg = labeled_only(bands_config(tree, tmp_path / 'work', max_iters=30))
    cfg.update(load_from=str(tmp_path / 'rgb.pth'), widen_input='repeat')
    runner = trained(cfg, tmp_path)
    # By the ground truth that `mask_values` gives, of validation too.
    assert runner.message_hub.get_scalar('val/mIoU').current() > 50


def test_dmt(tmp_path):
    tree = make_tree(tmp_path / 'data', blank=8)
    cfg = mutual(
        bands_config(tree, tmp_path / 'work'),
        ratios=[0.5],
        round=dict(max_iters=2, source_ratio=[1, 3]),
    )
    trained(cfg, tmp_path)
    stages = sorted(path.name for path in (tmp_path / 'work').glob('stage_*') if path.is_dir())
    assert stages == ['stage_0_a', 'stage_0_b', 'stage_1_a', 'stage_1_b']
    for name in ('a', 'b'):
        store = PseudoLabelStore(tmp_path / 'work' / f'stage_1_{name}' / 'pseudo_labels')
        assert len(store.manifest['files']) == 4
        # What was not measured has no label and no part in the thresholds.
        assert sum(store.manifest['predicted_pixels']) == 4 * (SIZE - 8) * SIZE
        label, confidence = store.get('unlabeled_0')
        assert (label[:8] == 255).all() and (label[8:] < 2).all() and not confidence[:8].any()
        assert (tmp_path / 'work' / f'stage_1_{name}' / 'iter_2.pth').is_file()
