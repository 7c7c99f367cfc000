"""U2PL as users run it: trained, evaluated, killed, resumed."""

import shutil

import pytest
import torch
from mmengine.registry import RUNNERS
from tiny_project import base_config, load_config, make_tree, online

MAX_ITERS = 8


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def train(tree, work_dir, workers=0, **settings):
    cfg = online(
        base_config(tree, work_dir, MAX_ITERS, num_workers=workers),
        'mmdmt.U2PL',
        strong=None,
        mix=dict(type='mmdmt.CutMix', boxes='half', partner='next'),
        sup_only=0.25,
        contrast=dict(
            anchors_per_class=4, keys_per_class=3, queue_size=8, projection=dict(channels=4)
        ),
    )
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = 4
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    cfg.update(settings)
    torch.set_num_threads(1)
    runner = RUNNERS.build(load_config(cfg, work_dir / 'u2pl.py'))
    runner.train()
    return runner


@pytest.fixture(scope='module')
def trained(tree, tmp_path_factory):
    """A finished run: (work dir, runner)."""
    work_dir = tmp_path_factory.mktemp('run')
    return work_dir, train(tree, work_dir)


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


def test_all_parts_train_once_the_start_is_over(trained):
    scalars = trained[1].message_hub.log_scalars
    contrast = scalars['train/contrast_loss']._log_history
    assert (contrast[:2] == 0).all() and (contrast[3:] > 0).all()
    assert len(scalars['train/unsup_loss']._log_history) == MAX_ITERS - 2
    for name in ('unsup_keep_ratio', 'unsup_agreement', 'unsup_confidence', 'contrast_classes'):
        assert f'train/{name}' in scalars
    for name in ('student', 'teacher'):
        assert 0 <= scalars[f'val/{name}/mIoU'].current() <= 100


def test_the_optimizer_trains_student_and_representation(trained):
    model = trained[1].model
    wanted = {id(p) for part in (model.student, model.contrast.student) for p in part.parameters()}
    groups = trained[1].optim_wrapper.optimizer.param_groups
    assert {id(p) for group in groups for p in group['params'] if p.requires_grad} == wanted


@pytest.mark.parametrize('iteration', [2, 6])
def test_a_resumed_run_ends_with_the_same_weights_and_queues(trained, tree, tmp_path, iteration):
    name = f'iter_{iteration}.pth'
    shutil.copy(trained[0] / name, tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / name))
    # Queues of the first part teach the second.
    assert (load(tmp_path / name)['contrast.queue.total'].sum() > 0) == (iteration == 6)
    runner = train(tree, tmp_path, workers=2, resume=True)
    logs = ''.join(log.read_text() for log in tmp_path.rglob('*.log'))
    assert f'resumed epoch: 0, iter: {iteration}' in logs, 'it started anew'
    expected = load(trained[0] / f'iter_{MAX_ITERS}.pth')
    assert expected['contrast.queue.total'].sum() > 0
    for key, value in runner.model.state_dict().items():
        assert torch.equal(expected[key], value), key
