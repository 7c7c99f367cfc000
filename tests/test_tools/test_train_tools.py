"""The tools as a user starts them: options, stock mmseg tools, several processes."""

import json
import os
import stat
import subprocess
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from forked_tool import PATIENCE, ForkedTool, forked_ranks
from PIL import Image
from tiny_project import (
    ROOT,
    UNFORMATTED,
    base_config,
    environment,
    labeled_only,
    make_tree,
    mean_teacher,
    mutual,
    write_config,
)

TOOLS = ROOT / 'tools'
STOCK = Path(mmseg.__file__).parent / '.mim' / 'tools'

# Stores what every process ends with.
DUMP = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class DumpHook(Hook):
    def after_train(self, runner):
        parameters = dict(runner.model.module.named_parameters())
        kinds = {type(module).__name__ for module in runner.model.modules()}
        norms = sorted(kind for kind in kinds if 'BatchNorm' in kind)
        torch.save(({k: v.detach() for k, v in parameters.items()}, norms),
                   f'{runner.work_dir}/rank_{runner.rank}.pth')
"""


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = make_tree(tmp_path_factory.mktemp('tree'))
    (root / 'dump_hook.py').write_text(UNFORMATTED + DUMP)
    return root


@pytest.fixture(scope='module')
def supervised(tree, tmp_path_factory):
    """Config and work dir of a labeled-only run by ``tools/train.py`` with all its options."""
    folder = tmp_path_factory.mktemp('supervised')
    cfg = labeled_only(base_config(tree, 'elsewhere', max_iters=3))
    config = write_config(cfg, folder / 'tiny.py')
    printed = ForkedTool(
        'train.py',
        config,
        *('--work-dir', folder / 'run', '--amp', '--seed', 5, '--cfg-options'),
        *('train_cfg.val_interval=2', 'train_dataloader.num_workers=1'),
        log=folder / 'train.log',
    ).finish()
    return config, folder / 'run', printed


def test_train_options_reach_the_run(supervised):
    _, work_dir, printed = supervised
    meta = torch.load(work_dir / 'iter_3.pth', weights_only=True)['meta']
    assert meta['seed'] == 5
    assert "type='mmdmt.CPUAmpOptimWrapper'" in meta['cfg']
    assert 'fp16=True' in meta['cfg']  # validation too
    assert printed.count('Iter(val) [3/3]    aAcc') == 2  # at iterations 2 and 3
    assert not os.path.exists('elsewhere')


def test_amp_reaches_training_validation_and_labeling(tree, tmp_path):
    settings = dict(members=[dict(name='a')], ratios=[1.0])
    cfg = mutual(base_config(tree, tmp_path / 'run', max_iters=2), **settings)
    config = write_config(cfg, tmp_path / 'c.py')
    ForkedTool('train.py', config, '--amp', log=tmp_path / 'train.log').finish()
    for stage in ('stage_0_a', 'stage_1_a'):
        text = (tmp_path / 'run' / stage / 'config.py').read_text()
        assert "type='mmdmt.CPUAmpOptimWrapper'" in text and 'fp16=True' in text
    store = tmp_path / 'run' / 'stage_1_a' / 'pseudo_labels'
    assert json.loads((store / 'manifest.json').read_text())['amp'] is True


def test_stock_mmseg_tools_run_the_same_config(supervised, tmp_path):
    config, work_dir, _ = supervised
    log = tmp_path / 'stock.log'
    args = ('--work-dir', tmp_path / 'run')
    printed = ForkedTool(STOCK / 'train.py', config, *args, log=log).finish()
    assert 'IterSeedHook' in printed
    assert (tmp_path / 'run' / 'iter_3.pth').is_file()

    # Each checkpoint with each test tool: no unsafe loading, and the same result.
    results = []
    for tool in (STOCK / 'test.py', 'test.py'):
        log = tmp_path / f'{len(results)}_test.log'
        printed = ForkedTool(tool, config, work_dir / 'iter_3.pth', *args, log=log).finish()
        assert 'Falling back' not in printed
        results.append(printed.split('Iter(test) [3/3]')[-1].split('data_time')[0])
    assert 'mIoU' in results[0]
    assert results[0] == results[1]


def test_predictions_are_written_for_a_named_network(tree, tmp_path):
    cfg = mean_teacher(base_config(tree, tmp_path / 'run', max_iters=2))
    config = write_config(cfg, tmp_path / 'tiny.py')
    ForkedTool('train.py', config, log=tmp_path / 'train.log').finish()

    checkpoint = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=True)
    weights = checkpoint['state_dict']
    for key in ('weight', 'bias'):  # so that the student always predicts class 3
        weights[f'student.decode_head.conv_seg.{key}'].zero_()
    weights['student.decode_head.conv_seg.bias'][3] = 1
    torch.save(checkpoint, tmp_path / 'changed.pth')

    def predict(name, *args):
        out = tmp_path / name
        args = ('--predict-on', name, '--out', out, '--show-dir', tmp_path / 'pictures', *args)
        log = tmp_path / f'{name}.log'
        ForkedTool('test.py', config, tmp_path / 'changed.pth', *args, log=log).finish()
        return np.stack([np.array(Image.open(path)) for path in sorted(out.glob('*.png'))])

    assert (predict('student') == 3).all()
    assert not (predict('teacher', '--tta') == 3).all()  # the config has no `tta_pipeline`
    assert list((tmp_path / 'pictures').rglob('*.png'))
    # What testing writes lies beside the checkpoint; the run keeps its config.
    assert list((tmp_path / 'test').glob('*/*.log'))
    assert 'predict_on' not in (tmp_path / 'run' / 'tiny.py').read_text()


def test_predict_on_needs_several_networks(supervised, tmp_path):
    config, work_dir, _ = supervised
    tool = ForkedTool(
        'test.py',
        config,
        work_dir / 'iter_3.pth',
        *('--predict-on', 'teacher'),
        log=tmp_path / 'test.log',
    )
    assert 'is a single network' in tool.finish(check=False)
    assert tool.process.exitcode == 1


def test_initial_weights_are_not_what_resume_resumes(supervised, tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path / 'run', max_iters=3))
    cfg['load_from'] = str(supervised[1] / 'iter_3.pth')
    config = write_config(cfg, tmp_path / 'tiny.py')
    first = ForkedTool('train.py', config, '--resume', log=tmp_path / '1.log').finish()
    assert 'Iter(train) [3/3]' in first  # it started at 0
    again = ForkedTool('train.py', config, '--resume', log=tmp_path / '2.log').finish()
    assert f'Load checkpoint from {tmp_path}' in again
    assert 'resumed epoch: 0, iter: 3' in again


@pytest.fixture(scope='module')
def distributed(tree, tmp_path_factory):
    """Two processes by ``dist_train.sh``, from another folder, of Mean Teacher with SyncBN."""
    folder = tmp_path_factory.mktemp('distributed')
    cfg = mean_teacher(base_config(tree, folder / 'run', max_iters=3))
    for part in ('backbone', 'decode_head'):
        cfg['model']['segmentor'][part]['norm_cfg'] = dict(type='SyncBN')
    cfg['custom_imports'] = dict(imports=['mmdmt', 'dump_hook'], allow_failed_imports=False)
    cfg['custom_hooks'] = [dict(type='DumpHook')]
    config = write_config(cfg, folder / 'tiny.py')
    done = launch('dist_train.sh', config, 2, cwd=folder, PYTHONPATH=str(tree))
    assert done.returncode == 0, done.stdout[-4000:]
    return config, folder / 'run', done.stdout


def launch(script, *args, cwd, **extra):
    child = environment()
    for name, value in extra.items():
        child[name] = f'{value}:{child[name]}' if name.endswith('PATH') else value
    return subprocess.run(
        [str(TOOLS / script), *map(str, args)],
        cwd=cwd,
        env=child,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


def test_processes_on_cpus_end_with_the_same_parameters(distributed):
    _, work_dir, printed = distributed
    (first, norms), (second, _) = (torch.load(work_dir / f'rank_{rank}.pth') for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert 'SyncBN works on GPUs only' in printed
    assert norms == ['_BatchNormXd']


def test_two_processes_test_as_one_does(distributed, tree, tmp_path):
    config, work_dir, _ = distributed
    args, path = (config, work_dir / 'iter_3.pth'), str(tree)
    single = ForkedTool('test.py', *args, log=tmp_path / 'test.log', PYTHONPATH=path).finish()
    ranks = forked_ranks('test.py', *args, log=tmp_path / 'ranks.log', PYTHONPATH=path)
    several = [tool.finish() for tool in ranks]

    def metrics(printed):
        return [line for line in printed.splitlines() if line.startswith('|')]

    assert metrics(single)
    assert metrics(several[0]) == metrics(single)


@pytest.fixture
def commands(tmp_path):
    """A folder of programs that print how they are called instead of running."""
    for name in ('srun', 'python'):
        path = tmp_path / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/bin/sh\necho "$(basename "$0")" "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return dict(cwd=tmp_path, PATH=str(tmp_path / 'bin'))


def test_several_machines_are_told_to_torchrun(commands):
    machines = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    printed = launch('dist_train.sh', 'c.py', 4, '--amp', **commands, **machines).stdout
    assert '--nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 1234' in printed
    assert f'--nproc_per_node 4 {TOOLS}/train.py --launcher pytorch c.py --amp' in printed


def test_a_free_port_is_taken_on_one_machine(commands):
    assert '--standalone' in launch('dist_test.sh', 'c.py', 'a.pth', 2, **commands).stdout
    printed = launch('dist_test.sh', 'c.py', 'a.pth', 2, '--tta', **commands, PORT='7').stdout
    assert '--master_addr 127.0.0.1 --master_port 7' in printed
    assert f'{TOOLS}/test.py --launcher pytorch c.py a.pth --tta' in printed


def test_slurm_gets_resources_and_arguments(commands):
    settings = dict(GPUS='4', SRUN_ARGS='--quotatype=spot --time=1')
    printed = launch('slurm_train.sh', 'part', 'job', 'c.py', '--amp', **commands, **settings)
    assert '-p part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4' in printed.stdout
    assert '--quotatype=spot --time=1 python -u' in printed.stdout
    assert printed.stdout.rstrip().endswith('train.py c.py --launcher slurm --amp')
    printed = launch('slurm_test.sh', 'part', 'job', 'c.py', 'a.pth', '--tta', **commands)
    assert '--gres=gpu:8 --ntasks=8' in printed.stdout
    assert printed.stdout.rstrip().endswith('test.py c.py a.pth --launcher slurm --tta')


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_usage_is_shown_when_arguments_are_missing(commands, script):
    done = launch(script, 'c.py', **commands)
    assert done.returncode == 2
    assert script in done.stdout
    assert 'CONFIG' in done.stdout
