"""Training that is killed at any moment ends with the weights of training that was not."""

import json
import shutil

import pytest
import torch
from forked_tool import forked_ranks
from interruptions import add_hook, kill_held, make_hook, train
from tiny_project import base_config, labeled_only, make_tree, mean_teacher, write_config

MAX_ITERS = 9


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_hook(make_tree(tmp_path_factory.mktemp('tree'), labeled=7, unlabeled=5))


def plain(cfg):
    """A supervised run with dropout, momentum, warm-up and validation in between."""
    cfg = labeled_only(cfg)
    cfg['train_cfg']['val_interval'] = 2
    cfg['optim_wrapper']['optimizer'] = dict(type='AdamW', lr=0.01)
    warm_up = dict(type='LinearLR', start_factor=0.1, begin=0, end=4, by_epoch=False)
    cfg['param_scheduler'].insert(0, warm_up)
    return cfg


def write(tree, work_dir, adapt=plain, workers=0, keep=2, **extra):
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg = adapt(base_config(tree, work_dir, MAX_ITERS, num_workers=workers, interval=3))
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = keep
    cfg.update(extra)
    return write_config(add_hook(cfg), work_dir / 'tiny.py')


def outcome(work_dir):
    """Everything training leads to: weights, buffers, optimizer, schedulers."""
    checkpoint = torch.load(work_dir / f'iter_{MAX_ITERS}.pth', weights_only=True)
    return {key: checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')}


def assert_same(found, expected, path=''):
    """Compare bit by bit."""
    assert type(found) is type(expected), path
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_same(found[key], value, f'{path}/{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), path
        for index, value in enumerate(expected):
            assert_same(found[index], value, f'{path}/{index}')
    else:
        assert found == expected, path


def validations(work_dir):
    """(iteration, mIoU) of all validations of all runs in a folder, in order."""
    lines = [
        json.loads(line)
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return [(line['step'], line['mIoU']) for line in lines if 'mIoU' in line]


@pytest.fixture(scope='module')
def uninterrupted_dir(tree, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('uninterrupted')
    train(tree, write(tree, work_dir)).finish()
    return work_dir


@pytest.fixture(scope='module')
def uninterrupted(uninterrupted_dir):
    return outcome(uninterrupted_dir)


def test_killed_while_a_checkpoint_is_written(tree, tmp_path, uninterrupted):
    config = write(tree, tmp_path, keep=1)
    kill_held(tree, config, 'writing iter_6.pth')
    # The only complete checkpoint is still there; beside it is the half-finished one.
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_3.pth']
    stale = list(tmp_path.glob('.iter_6.pth*'))
    assert len(stale) == 1

    printed = train(tree, config, '--resume').finish()
    assert 'resumed epoch: 0, iter: 3' in printed
    assert_same(outcome(tmp_path), uninterrupted)
    assert not stale[0].exists()
    assert [path.name for path in tmp_path.glob('iter_*')] == [f'iter_{MAX_ITERS}.pth']


def test_killed_in_an_iteration_with_workers_and_the_newest_checkpoint_damaged(
    tree, tmp_path, uninterrupted
):
    config = write(tree, tmp_path, workers=2)
    kill_held(tree, config, 'before 7')
    newest = tmp_path / 'iter_6.pth'
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])

    printed = train(tree, config, '--resume').finish()
    assert 'iter_6.pth is missing or damaged: going on from' in printed
    assert 'resumed epoch: 0, iter: 3' in printed
    assert_same(outcome(tmp_path), uninterrupted)


def test_killed_while_it_validates(tree, tmp_path, uninterrupted_dir):
    """The checkpoint was saved before; its metrics decide which one is the best."""
    config = write(tree, tmp_path)
    kill_held(tree, config, 'validating 6')
    assert [step for step, _ in validations(tmp_path)] == [2, 4]
    train(tree, config, '--resume').finish()
    assert validations(tmp_path) == validations(uninterrupted_dir)
    assert [step for step, _ in validations(tmp_path)] == [2, 4, 6, 8, MAX_ITERS]


def test_a_finished_run_resumes_to_nothing(tree, tmp_path, uninterrupted):
    config = write(tree, tmp_path)
    kill_held(tree, config, f'after {MAX_ITERS - 1}')
    before = outcome(tmp_path)
    printed = train(tree, config, '--resume').finish()
    assert f'Iter(train) [{MAX_ITERS}/' not in printed.split('resumed epoch')[1]
    assert_same(outcome(tmp_path), before)
    assert_same(before, uninterrupted)


def test_a_random_seed_is_kept_over_a_kill(tree, tmp_path):
    first = write(tree, tmp_path / 'a', randomness=dict(seed=None))
    train(tree, first).finish()
    config = write(tree, tmp_path / 'b', randomness=dict(seed=None))
    shutil.copy(tmp_path / 'a' / 'iter_6.pth', tmp_path / 'b')
    printed = train(tree, config, '--resume').finish()
    assert 'instead of a random one' in printed
    assert_same(outcome(tmp_path / 'b'), outcome(tmp_path / 'a'))


def test_two_processes_of_an_online_method_are_killed_and_resumed(tree, tmp_path):
    """Teachers in eval mode predict with the buffers of their own rank, which rank 0 stores."""
    whole = write(tree, tmp_path / 'whole', adapt=mean_teacher)
    for tool in train(tree, whole, launch=forked_ranks):
        tool.finish()
    config = write(tree, tmp_path / 'killed', adapt=mean_teacher)
    kill_held(tree, config, 'before 5', launch=forked_ranks)
    printed = [tool.finish() for tool in train(tree, config, '--resume', launch=forked_ranks)]
    assert 'resumed epoch: 0, iter: 3' in printed[0]
    assert_same(outcome(tmp_path / 'killed'), outcome(tmp_path / 'whole'))
