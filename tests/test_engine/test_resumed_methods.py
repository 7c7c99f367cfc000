"""AugSeg and PrevMatch as users run them: trained, evaluated, killed, resumed."""

import shutil

import pytest
import torch
from mmengine.registry import RUNNERS, DefaultScope
from tiny_project import base_config, load_config, make_tree, online

from mmdmt.export.segmentor import select_network
from mmdmt.registry import MODELS

MAX_ITERS = 6
CUTMIX = dict(type='mmdmt.CutMix')
METHODS = dict(
    augseg=dict(
        kind='mmdmt.AugSeg',
        strong=dict(type='mmdmt.RandomIntensityAugment'),
        mix=dict(type='mmdmt.AdaptiveCutMix'),
        threshold=0.2,
    ),
    prevmatch=dict(kind='mmdmt.UniMatch', strong=None, mix=CUTMIX, previous=dict(every=2, keep=2)),
    prevmatch_best=dict(
        kind='mmdmt.FixMatch', strong=None, mix=CUTMIX, previous=dict(every='best')
    ),
)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def train(tree, work_dir, name, workers=0, **settings):
    cfg = online(base_config(tree, work_dir, MAX_ITERS, num_workers=workers), **METHODS[name])
    cfg['default_hooks']['checkpoint'].update(interval=2, max_keep_ckpts=4)
    cfg['train_cfg']['val_interval'] = 2
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    cfg.update(settings)
    torch.set_num_threads(1)
    runner = RUNNERS.build(load_config(cfg, work_dir / f'{name}.py'))
    runner.train()
    return runner


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


def test_a_new_run_starts_from_the_checkpoint_of_another_method(tree, tmp_path):
    """PrevMatch from UniMatch: the networks are loaded, copies and ramps start anew."""
    cfg = online(base_config(tree, tmp_path), 'mmdmt.UniMatch')['model']
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg).state_dict()
    state['iterations'] += 100
    torch.save(dict(state_dict=state), tmp_path / 'unimatch.pth')
    runner = train(tree, tmp_path, 'prevmatch', load_from=str(tmp_path / 'unimatch.pth'))
    logs = ''.join(log.read_text() for log in tmp_path.rglob('*.log'))
    assert 'has no previous.copies: UniMatch starts with new ones' in logs
    assert runner.model.step == runner.model.iterations == MAX_ITERS
    assert runner.message_hub.log_scalars['train/previous_loss'].current() >= 0


@pytest.mark.parametrize('name', METHODS)
def test_a_resumed_run_ends_with_the_same_state(tree, tmp_path, name):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    whole.mkdir()
    resumed.mkdir()
    first = train(tree, whole, name)
    for network in first.model.network_names:
        assert 0 <= first.message_hub.log_scalars[f'val/{network}/mIoU'].current() <= 100
    shutil.copy(whole / 'iter_4.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'iter_4.pth'))
    second = train(tree, resumed, name, workers=2, resume=True)
    logs = ''.join(log.read_text() for log in resumed.rglob('*.log'))
    assert 'resumed epoch: 0, iter: 4' in logs, 'it started anew'
    expected = first.model.state_dict()
    assert expected.keys() == second.model.state_dict().keys()
    for key, value in second.model.state_dict().items():
        assert torch.equal(expected[key], value), key
    if name.startswith('prevmatch'):
        saved = load(whole / 'iter_4.pth')
        assert len(saved['previous.copies']) == (2 if name == 'prevmatch' else 1)
        assert len(first.model.previous) == 2 or name == 'prevmatch_best'
        assert 'train/previous_loss' in first.message_hub.log_scalars
        assert select_network(saved, dict(first.cfg.model)) == 'student'
