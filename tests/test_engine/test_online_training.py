"""An online method as users run it: trained, killed, resumed, evaluated, predicted with."""

import pytest
import torch
from interruptions import add_hook, kill_held, make_hook, train
from mmengine.registry import RUNNERS
from mmseg.apis import MMSegInferencer
from tiny_project import base_config, load_config, make_tree, mean_teacher, write_config


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def config(tree, work_dir, **kwargs):
    cfg = mean_teacher(base_config(tree, work_dir, **kwargs), mix=dict(type='mmdmt.CutMix'))
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    return cfg


@pytest.fixture(scope='module')
def trained(tree, tmp_path_factory):
    """A finished run: (work dir, runner)."""
    work_dir = tmp_path_factory.mktemp('run')
    torch.set_num_threads(1)
    runner = RUNNERS.build(load_config(config(tree, work_dir), work_dir / 'mean_teacher.py'))
    runner.train()
    return work_dir, runner


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def test_teacher_moves_every_iteration_and_is_in_the_checkpoint(trained):
    work_dir, runner = trained
    state = load(work_dir / 'iter_8.pth')['state_dict']
    assert state['iterations'] == 8
    key = 'decode_head.conv_seg.weight'
    assert not torch.equal(state[f'student.{key}'], state[f'teacher.{key}'])
    for name, value in runner.model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_optimizer_holds_the_student_only(trained):
    _, runner = trained
    students = {id(p) for p in runner.model.student.parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    updated = {id(p) for group in groups for p in group['params'] if p.requires_grad}
    assert updated == students


def test_health_of_the_method_is_logged(trained):
    scalars = trained[1].message_hub.log_scalars
    for name in ('unsup_keep_ratio', 'unsup_agreement', 'unsup_loss', 'sup_decode.loss_ce'):
        assert f'train/{name}' in scalars


def test_both_networks_are_evaluated(trained):
    scalars = trained[1].message_hub.log_scalars
    teacher = scalars['val/teacher/mIoU'].current()
    assert scalars['val/mIoU'].current() == teacher
    assert 0 <= scalars['val/student/mIoU'].current() <= 100


@pytest.mark.parametrize(('iteration', 'workers'), [(2, 0), (6, 2)])
def test_a_killed_run_ends_with_the_same_weights(trained, tree, tmp_path, iteration, workers):
    cfg = add_hook(config(tree, tmp_path, num_workers=workers))
    path = write_config(cfg, tmp_path / 'mean_teacher.py')
    kill_held(make_hook(tree), path, f'after {iteration}')
    assert (tmp_path / f'iter_{iteration}.pth').exists()
    train(tree, path, '--resume').finish()
    assert_equal_training(load(tmp_path / 'iter_8.pth'), load(trained[0] / 'iter_8.pth'))


def assert_equal_training(found, expected):
    for key, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    for index, state in expected['optimizer']['state'].items():
        other = found['optimizer']['state'][index]['momentum_buffer']
        assert torch.equal(other, state['momentum_buffer'])


def test_mmsegs_inferencer_predicts_with_the_checkpoint(trained, tree):
    work_dir, _ = trained
    inferencer = MMSegInferencer(
        model=str(work_dir / 'mean_teacher.py'), weights=str(work_dir / 'iter_8.pth'), device='cpu'
    )
    result = inferencer(str(tree / 'img' / 'val_0.png'))
    assert result['predictions'].shape == (32, 32)


def test_test_time_augmentation_works_on_the_whole_model(trained, tree, tmp_path):
    work_dir, _ = trained
    cfg = load_config(config(tree, tmp_path), tmp_path / 'mean_teacher.py')
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='Resize', scale_factor=f, keep_ratio=True) for f in (1.0, 1.5)],
                [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
                [dict(type='LoadAnnotations')],
                [dict(type='PackSegInputs')],
            ],
        ),
    ]
    cfg.model = dict(type='SegTTAModel', module=cfg.model)
    cfg.load_from = str(work_dir / 'iter_8.pth')
    assert 0 <= RUNNERS.build(cfg).test()['mIoU'] <= 100
