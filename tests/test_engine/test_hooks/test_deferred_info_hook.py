import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import MessageHub
from mmengine.registry import RUNNERS
from tiny_project import base_config, load_config, make_tree, mean_teacher
from virtual_gpu import VirtualGPU

from mmdmt.engine.hooks import DeferredInfoHook
from mmdmt.engine.hooks.deferred_info_hook import MAX_PENDING

STOCK = dict(type='RuntimeInfoHook')


def fake_runner(interval):
    hub = MessageHub('deferred')
    loader = [None] * 1000
    return SimpleNamespace(
        hooks=[LoggerHook(interval=interval)], message_hub=hub, train_dataloader=loader
    )


@pytest.mark.parametrize(('hook', 'expected'), [(DeferredInfoHook(), 0), (RuntimeInfoHook(), 8)])
def test_nothing_is_read_before_it_is_logged(hook, expected):
    runner, gpu = fake_runner(interval=5), VirtualGPU()
    with gpu:
        for index in range(4):
            losses = {name: torch.zeros((), device='cuda') for name in ('loss', 'accuracy')}
            hook.after_train_iter(runner, index, None, losses)
    assert sum(gpu.waits.values()) == expected


def test_what_is_kept_holds_no_graph_and_is_bounded():
    runner, hook = fake_runner(interval=10**6), DeferredInfoHook()
    weight = torch.ones(1, requires_grad=True)
    for index in range(MAX_PENDING - 1):
        hook.after_train_iter(runner, index, None, dict(loss=(weight * index).sum()))
    assert runner.message_hub.log_scalars == {}
    hook.after_train_iter(runner, MAX_PENDING - 1, None, dict(loss=weight.sum(), number=2))
    history = runner.message_hub.get_scalar('train/loss').data[0].tolist()
    assert history == [*range(MAX_PENDING - 1), 1]
    assert runner.message_hub.get_scalar('train/number').current() == 2


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def run(tree, work_dir, max_iters=7, **extra):
    """Log every third iteration, save after the fifth, and return what was logged."""
    cfg = mean_teacher(base_config(tree, work_dir, max_iters, interval=5))
    cfg['default_hooks']['logger'] = dict(interval=3)
    cfg['default_hooks'].update(extra.pop('default_hooks', {}))
    cfg.update(extra)
    work_dir.mkdir(exist_ok=True)
    runner = RUNNERS.build(load_config(cfg, work_dir / 'tiny.py'))
    runner.train()
    scalars = runner.message_hub.log_scalars
    text = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    losses = re.findall(r'Iter\(train\).* loss: (\S+)', text)
    values = {key: value.data[0].tolist() for key, value in scalars.items() if 'time' not in key}
    return values, losses


def test_the_log_is_that_of_mmengine(tree, tmp_path):
    values, losses = run(tree, tmp_path / 'own')
    expected, lines = run(tree, tmp_path / 'stock', default_hooks=dict(runtime_info=STOCK))
    assert values == expected and len(values['train/loss']) == 7
    assert losses == lines and len(losses) == 2, 'smoothed over all iterations'


def test_a_checkpoint_has_the_whole_history(tree, tmp_path):
    run(tree, tmp_path / 'first')
    saved = torch.load(tmp_path / 'first' / 'iter_5.pth', weights_only=True)
    history = saved['message_hub']['log_scalars']['train/loss']['log_history']
    assert len(history) == 5, 'iterations 4 and 5 were not logged yet'
