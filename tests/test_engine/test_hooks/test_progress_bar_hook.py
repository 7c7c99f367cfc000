from types import SimpleNamespace

import pytest
import torch

from mmdmt.engine.hooks.progress_bar_hook import ProgressBarHook
from mmdmt.registry import HOOKS


def _run(hook, first, last, work_dir='/somewhere/stage_1_a'):
    runner = SimpleNamespace(iter=first, max_iters=last, work_dir=work_dir)
    hook.before_train(runner)
    for runner.iter in range(first, last):
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(0.25)))
    hook.after_train(runner)


def test_shows_name_iterations_and_loss(capsys):
    _run(HOOKS.build(dict(type='mmdmt.ProgressBarHook', interval=2)), 0, 4)
    last = capsys.readouterr().err.rsplit('\r', 1)[-1]
    assert last.startswith('stage_1_a: 100%') and '4/4' in last and 'loss=0.250' in last


def test_resumed_run_starts_in_the_middle(capsys):
    _run(ProgressBarHook(title='again'), 3, 4)
    first = capsys.readouterr().err.split('\r')[1]
    assert first.startswith('again:  75%') and '3/4' in first


def test_loss_is_read_rarely():
    hook, reads = ProgressBarHook(interval=3), []

    class Loss:
        def __float__(self):
            reads.append(1)
            return 0.0

    runner = SimpleNamespace(iter=0, max_iters=6, work_dir='x')
    hook.before_train(runner)
    for runner.iter in range(6):
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=Loss()))
    assert len(reads) == 2


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setattr('mmdmt.engine.hooks.progress_bar_hook.is_main_process', lambda: False)
    _run(ProgressBarHook(), 0, 2)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('outputs', [None, {}])
def test_loop_without_outputs(outputs, capsys):
    hook = ProgressBarHook(interval=1)
    runner = SimpleNamespace(iter=0, max_iters=1, work_dir='x')
    hook.before_train(runner)
    hook.after_train_iter(runner, 0, outputs=outputs)
    hook.after_train(runner)
    last = capsys.readouterr().err.rsplit('\r', 1)[-1]
    assert '1/1' in last and 'loss' not in last
