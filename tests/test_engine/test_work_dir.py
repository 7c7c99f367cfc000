"""A work dir belongs to one run at a time, and what a killed one leaves is usable."""

import os
import signal
import time

import pytest
from forked_tool import PATIENCE, ROOT, ForkedTool, free_port
from interruptions import add_hook, hold, kill_held, make_hook, train
from tiny_project import base_config, labeled_only, load_config, make_tree, mutual, write_config

from mmdmt import files
from mmdmt.engine.runners.work_dir import LOCK_NAME
from mmdmt.registry import RUNNERS

# What torchrun does, without the checks by which it ends its ranks.
LAUNCHER = f"""
import os, runpy, sys

ranks = []
for rank in range(2):
    ranks.append(os.fork())
    if not ranks[-1]:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
        sys.argv[0] = {str(ROOT / 'tools' / 'train.py')!r}
        runpy.run_path(sys.argv[0], run_name='__main__')
        os._exit(0)
with open(os.environ['PIDS'], 'w') as file:
    file.write(' '.join(map(str, ranks)))
for rank in ranks:
    os.waitpid(rank, 0)
"""


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = make_hook(make_tree(tmp_path_factory.mktemp('tree')))
    (root / 'launcher.py').write_text(LAUNCHER)
    return root


def write(tree, work_dir, **options):
    cfg = labeled_only(base_config(tree, work_dir, max_iters=4))
    cfg.update(options)
    return write_config(add_hook(cfg), work_dir / 'tiny.py')


def refused(text, work_dir, process):
    holder = f'is being worked on by process {process} on '
    return f'the folder {work_dir} {holder}' in text and '--work-dir' in text


@pytest.mark.parametrize('runner_type', ['mmdmt.SemiRunner', 'Runner'])
def test_a_second_run_is_refused_and_touches_nothing(tree, tmp_path, runner_type):
    config = write(tree, tmp_path, runner_type=runner_type)
    (first,) = hold(tree, config, 'before 3')
    writes_now = tmp_path / '.iter_4.pth.partial-elsewhere-7'
    writes_now.write_text('half')
    second, args = train(tree, config), (config, tmp_path / 'iter_2.pth')
    tested = ForkedTool('test.py', *args, log=tmp_path / 'test.log', PYTHONPATH=str(tree))
    printed, scores = second.finish(check=False), tested.finish(check=False)
    untouched = writes_now.exists()
    first.kill()
    assert second.process.exitcode == 1 and refused(printed, tmp_path, first.process.pid)
    assert untouched
    assert 'mIoU' in scores  # a test writes nothing that belongs to the run
    # mmengine's own runner cannot resume from its checkpoints under torch >= 2.6.
    again = ['--resume'] if runner_type != 'Runner' else []
    assert bool(again) == ('iter: 2' in train(tree, config, *again).finish())
    assert not writes_now.exists()


def test_ranks_that_outlive_their_launcher_keep_the_work_dir(tree, tmp_path):
    config, pids, held = write(tree, tmp_path), tmp_path / 'pids', tmp_path / 'held'
    environment = dict(PIDS=str(pids), HOLD_AT='before 3', HOLD_FILE=str(held))
    environment.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), PYTHONPATH=str(tree))
    args = (config, '--launcher', 'pytorch')
    launcher = ForkedTool(tree / 'launcher.py', *args, log=tmp_path / 'l.log', **environment)
    launcher.wait_for(held)
    launcher.kill()
    ranks = [int(pid) for pid in pids.read_text().split()]
    printed = train(tree, config, '--resume').finish(check=False)
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    assert refused(printed, tmp_path, ranks[0])
    wait_until_free(tmp_path / LOCK_NAME)
    assert 'iter: 2' in train(tree, config, '--resume').finish()


def wait_until_free(path):
    """The system ends a killed process when it comes to it."""
    end = time.time() + PATIENCE
    while time.time() < end:
        try:
            with files.hold(path, 'the folder', ''):
                return
        except files.BusyError:
            time.sleep(0.05)
    raise AssertionError(f'{path} is still held')


def test_two_runs_with_one_folder_of_checkpoints_exclude_each_other(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path / 'a' / 'run', max_iters=1))
    cfg['default_hooks']['checkpoint']['out_dir'] = str(tmp_path / 'checkpoints')
    held = tmp_path / 'checkpoints' / 'run'
    held.mkdir(parents=True)
    one, two = os.pipe()
    child = os.fork()
    if not child:
        with files.hold(held / LOCK_NAME, 'x', 'y'):
            os.write(two, b'1')
            time.sleep(PATIENCE)
    os.read(one, 1)
    cfg['runner_type'] = 'mmdmt.SemiRunner'
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py'))
    try:
        with pytest.raises(files.BusyError, match=f'folder {held} .* by process {child} on'):
            runner.train()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize('kind', ['mmdmt.SemiRunner', 'mmdmt.MutualTrainingRunner'])
def test_a_work_dir_that_cannot_be_written_to_is_named(tree, tmp_path, kind):
    (tmp_path / 'disk').write_text('a file where a folder should be')
    work_dir = tmp_path / 'disk' / 'run'
    cfg = mutual(base_config(tree, work_dir)) if 'Mutual' in kind else base_config(tree, work_dir)
    cfg['runner_type'] = kind
    with pytest.raises(OSError, match=rf'cannot write into {work_dir} \(.*\(--work-dir\)'):
        RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py')).train()


def test_a_chain_killed_while_it_writes_goes_on_and_leaves_nothing_behind(tree, tmp_path):
    cfg = mutual(
        base_config(tree, tmp_path / 'run'),
        ratios=[1.0],
        supervised=dict(max_iters=2),
        round=dict(max_iters=2, source_ratio=[1, 3]),
        ensemble=True,
    )
    config = write_config(add_hook(cfg), tmp_path / 'chain.py')
    for name in ('dataset_check.json', 'stages.json', 'meta.json', 'manifest.json', 'ensemble.pth'):
        kill_held(tree, config, f'writing {name}')
        assert list(tmp_path.rglob(f'.{name}.partial-*'))
    printed = train(tree, config).finish()
    assert 'ensemble: done' in printed
    assert not list(tmp_path.rglob('*.partial-*'))
