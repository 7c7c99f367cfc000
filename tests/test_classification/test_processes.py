"""Chains of classification run by tools/train.py: killed, in two processes, at mixed precision."""

import json

import numpy as np
import pytest
import torch
from forked_tool import ForkedTool, forked_ranks
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_classification import RUNTIME, classification_config, make_folders, mutual_classification
from tiny_project import write_config

import mmdmt.classification  # noqa: F401
from mmdmt.classification.soft_labels import SoftLabelStore
from mmdmt.registry import HOOKS

pytestmark = pytest.mark.usefixtures('unformatted_configs')
LAST = 'stage_1_a/iter_4.pth'

# Holds the process where the test kills it, and notes which statistics are validated with.
CHAIN_HOOK = """
import os
import time
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class ChainHook(Hook):
    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ.get('HOLD_AT') == f'{Path(runner.work_dir).name} {runner.iter}':
            Path(os.environ['HOLD_FILE']).touch()
            time.sleep(3600)

    def before_val_epoch(self, runner):
        stage = Path(runner.work_dir)
        sums = [v.sum().item() for k, v in runner.model.named_buffers() if 'running' in k]
        with open(stage.parent / f'validated_{get_rank()}.txt', 'a') as file:
            file.write(f'{stage.name} {runner.iter} {sums}\\n')
"""


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = make_folders(tmp_path_factory.mktemp('folders'))
    (root / 'chain_hook.py').write_text(CHAIN_HOOK)
    return root


def write(tree, work_dir):
    """Config file of round 0 and one more round."""
    cfg = classification_config(tree, work_dir)
    cfg['custom_hooks'] = [dict(type='ChainHook')]
    cfg['train_cfg']['val_interval'] = 3  # also where there is no checkpoint
    modules = ['mmdmt', 'mmdmt.classification', 'chain_hook']
    cfg['custom_imports'] = dict(imports=modules, allow_failed_imports=False)
    mutual_classification(cfg, ratios=[1.0], round=dict(max_iters=4, source_ratio=[1, 3]))
    return write_config(cfg, work_dir / 'chain.py', RUNTIME)


def train(tree, config, *args, launch=ForkedTool, **environment):
    log = config.with_suffix('.log')
    return launch('train.py', config, *args, log=log, PYTHONPATH=str(tree), **environment)


def ledger(work_dir):
    return json.loads((work_dir / 'stages.json').read_text())['stages']


def stage_config(folder):
    """Config of a stage, without importing the hook of the processes."""
    return Config.fromfile(str(folder / 'config.py'), import_custom_modules=False)


def scalars(folder):
    """Everything that was logged for a stage."""
    (path,) = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(tree, tmp_path_factory):
    """Work dir of a chain at mixed precision, stage by stage."""
    work_dir = tmp_path_factory.mktemp('whole')
    config = write(tree, work_dir)
    train(tree, config, '--amp', '--stage', 'round_0.a').finish()
    assert list(ledger(work_dir)) == ['stage_0_a']
    train(tree, config, '--amp').finish()
    return work_dir


def test_mixed_precision_ends_with_finite_losses(finished):
    assert stage_config(finished / 'stage_1_a').optim_wrapper.type == 'mmdmt.CPUAmpOptimWrapper'
    logged = scalars(finished / 'stage_1_a')
    losses = [line['loss'] for line in logged if 'loss' in line]
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert all(0 < line['mean_weight'] < 1 for line in logged if 'loss' in line)


def test_a_chain_killed_in_a_round_ends_with_the_same_network(tree, finished, tmp_path):
    config, held = write(tree, tmp_path), tmp_path / 'held'
    tool = train(tree, config, '--amp', HOLD_AT='stage_1_a 3', HOLD_FILE=str(held))
    tool.wait_for(held)
    tool.kill()
    assert ledger(tmp_path)['stage_1_a']['state'] == 'running'
    labels = tmp_path / 'stage_1_a' / 'soft_labels.npz'
    made = labels.stat().st_mtime_ns
    printed = train(tree, config, '--amp', '--resume').finish()
    assert 'stage_0_a: finished before' in printed and 'resumed epoch: 0, iter: 2' in printed
    assert labels.stat().st_mtime_ns == made
    one, two = (torch.load(path / LAST, weights_only=True) for path in (tmp_path, finished))
    for kind in ('state_dict', 'ema_state_dict'):
        assert one[kind].keys() == two[kind].keys()
        assert all(torch.equal(one[kind][key], two[kind][key]) for key in one[kind])
    for name, entry in ledger(finished).items():
        assert ledger(tmp_path)[name]['metrics'] == entry['metrics']


def test_the_table_of_stages(tree, finished, tmp_path):
    args = (finished / 'chain.py', '--amp', '--list-stages')
    # In a process of its own: the tool makes the terminal of its process quiet.
    tool = ForkedTool('train.py', *args, log=tmp_path / 'log', quiet=True, PYTHONPATH=str(tree))
    rows = [line.split() for line in tool.finish().splitlines()]
    assert [row[0] for row in rows if row and row[0].startswith('stage_')] == [
        'stage_0_a',
        'stage_1_a',
    ]
    assert rows[-1][1:4] == ['stage_0_a', '1', 'done'] and rows[-1][-1] == LAST


def test_two_processes_label_and_validate_with_one_network(tree, tmp_path):
    config = write(tree, tmp_path)
    for tool in train(tree, config, launch=forked_ranks):
        tool.finish()
    assert [entry['state'] for entry in ledger(tmp_path).values()] == ['done'] * 2
    validated = [(tmp_path / f'validated_{rank}.txt').read_text() for rank in (0, 1)]
    assert validated[0] == validated[1]
    steps = [line.split()[:2] for line in validated[0].splitlines()]
    assert steps == [[stage, step] for stage in ('stage_0_a', 'stage_1_a') for step in '34']

    # What one process makes of the same checkpoint.
    hook = stage_config(tmp_path / 'stage_1_a').default_hooks.pseudo_labels
    stored = SoftLabelStore(hook.labeler.store).read()
    hook.labeler.store = str(tmp_path / 'again.npz')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        HOOKS.build(hook).labeler.run(hook.checkpoint, hook.ratio)
    again = SoftLabelStore(hook.labeler.store).read()
    assert stored.names == again.names == (tree / 'unlabeled.txt').read_text().split()
    np.testing.assert_allclose(stored.probabilities, again.probabilities, atol=1e-3)
    assert (stored.selected == again.selected).all()
