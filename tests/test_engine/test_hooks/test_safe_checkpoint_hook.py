"""What is on disk when a save fails or the process is killed in between."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import get_priority

from mmdmt.checkpoint import save_atomically
from mmdmt.engine.hooks import SafeCheckpointHook, safe_checkpoint_hook


class FakeRunner:
    """Saves nothing but its iteration; can fail while it does."""

    rank = 0

    def __init__(self, work_dir):
        self.work_dir = str(work_dir)
        self.message_hub = MessageHub(f'hub of {work_dir}')
        self.logger = self
        self.iter = self.epoch = 0
        self.max_iters = 100
        self.fail = False

    def info(self, message):
        pass

    def warning(self, message):
        self.warned = message

    def save_checkpoint(self, out_dir, filename, *args, meta, **kwargs):
        if self.fail:
            raise OSError('disk full')
        hub = self.message_hub.state_dict()
        save_atomically(dict(iter=meta['iter'], message_hub=hub), f'{out_dir}/{filename}')


@pytest.fixture
def runner(tmp_path):
    return FakeRunner(tmp_path)


def make_hook(runner, **kwargs):
    hook = SafeCheckpointHook(interval=1, by_epoch=False, **kwargs)
    hook.before_train(runner)
    return hook


def save_at(hook, runner, *steps):
    for step in steps:
        runner.iter = step - 1
        hook.after_train_iter(runner, batch_idx=step - 1)


def files(runner, pattern='iter_*'):
    return sorted(path.name for path in Path(runner.work_dir).glob(pattern))


def pointer(runner):
    with open(f'{runner.work_dir}/last_checkpoint') as stream:
        return stream.read()


def test_keeps_as_many_as_asked(runner):
    hook = make_hook(runner, max_keep_ckpts=2)
    save_at(hook, runner, 1, 2, 3)
    assert files(runner) == ['iter_2.pth', 'iter_3.pth']
    assert pointer(runner) == f'{runner.work_dir}/iter_3.pth'


def test_keeps_all_by_default(runner):
    save_at(make_hook(runner), runner, 1, 2, 3)
    assert len(files(runner)) == 3


def test_a_failed_save_costs_nothing(runner):
    hook = make_hook(runner, max_keep_ckpts=1)
    save_at(hook, runner, 1)
    runner.fail = True
    with pytest.raises(OSError, match='disk full'):
        save_at(hook, runner, 2)
    assert files(runner) == ['iter_1.pth']
    assert pointer(runner) == f'{runner.work_dir}/iter_1.pth'


def test_what_a_kill_left_undeleted_goes_when_the_run_is_resumed(runner, monkeypatch):
    module = 'mmdmt.engine.hooks.safe_checkpoint_hook._remove'
    hook = make_hook(runner, max_keep_ckpts=1)
    save_at(hook, runner, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, lambda backend, path: None)  # killed before the removal
        save_at(hook, runner, 2)
    assert files(runner) == ['iter_1.pth', 'iter_2.pth']

    resumed = FakeRunner(runner.work_dir)
    stored = torch.load(f'{runner.work_dir}/iter_2.pth', weights_only=False)
    resumed.message_hub.load_state_dict(stored['message_hub'])
    hook = make_hook(resumed, max_keep_ckpts=1)
    assert files(runner) == ['iter_2.pth']
    save_at(hook, resumed, 3)
    assert files(runner) == ['iter_3.pth']


def test_the_previous_best_stays_until_the_new_one_is_written(runner):
    hook = make_hook(runner, max_keep_ckpts=1, save_best='mIoU')
    save_at(hook, runner, 1)
    hook.after_val_epoch(runner, dict(mIoU=np.float32(10)))
    runner.iter = 2
    runner.fail = True
    with pytest.raises(OSError, match='disk full'):
        hook.after_val_epoch(runner, dict(mIoU=np.float32(20)))
    assert files(runner, 'best*') == ['best_mIoU_iter_0.pth']


@pytest.mark.parametrize('metrics', [['mIoU'], ['mIoU', 'mAcc']])
def test_what_is_not_finite_is_never_the_best(runner, metrics):
    hook = make_hook(runner, save_best=metrics, rule='greater')
    for step, value in ((1, np.nan), (2, np.inf), (3, 10)):
        runner.iter = step
        hook.after_val_epoch(runner, {key: np.float32(value) for key in metrics})
        assert len(files(runner, 'best*')) == (step == 3) * len(metrics)
        assert f'is {value}' in runner.warned or step == 3


@pytest.mark.parametrize('metrics', [['mIoU'], ['mIoU', 'mAcc']])
def test_one_best_checkpoint_is_kept_for_each_metric(runner, metrics):
    hook = make_hook(runner, max_keep_ckpts=1, save_best=metrics)
    for step, value in ((1, 10), (2, 30), (3, 20)):
        save_at(hook, runner, step)
        runner.iter = step
        hook.after_val_epoch(runner, dict.fromkeys(metrics, np.float32(value)))
    assert files(runner, 'best*') == [f'best_{name}_iter_2.pth' for name in sorted(metrics)]
    assert files(runner) == ['iter_3.pth']


def test_checkpoints_hold_plain_values_and_histories_come_back(runner, tmp_path):
    hook = make_hook(runner)
    history = HistoryBuffer([1.5, 2.5], [1, 2])
    hub = dict(
        log_scalars={'train/loss': history},
        runtime_info={'mIoU': np.float32(0.5), 'kept': [np.int64(3)]},
        resumed_keys={},
    )
    checkpoint = dict(message_hub=hub)
    hook.before_save_checkpoint(runner, checkpoint)
    save_atomically(checkpoint, tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['message_hub']['runtime_info'] == dict(mIoU=0.5, kept=[3])

    hook.after_load_checkpoint(runner, loaded)
    restored = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(restored, HistoryBuffer)
    assert [array.tolist() for array in restored.data] == [[1.5, 2.5], [1, 2]]
    # A checkpoint of stock mmengine, and one that has no message hub, stay as they are.
    hook.after_load_checkpoint(runner, checkpoint := dict(message_hub=hub))
    assert checkpoint['message_hub']['log_scalars']['train/loss'] is history
    hook.after_load_checkpoint(runner, dict(state_dict={}))


def test_ranks_share_their_buffers(runner, monkeypatch):
    """Before validating those of the network, for a checkpoint also those of its average."""
    runner.model = torch.nn.BatchNorm1d(2)
    average = EMAHook(ema_type='ExponentialMovingAverage')
    average.before_run(runner)
    runner.hooks = [average]
    shared = []
    monkeypatch.setattr(safe_checkpoint_hook, 'get_world_size', lambda: 2)
    monkeypatch.setattr(safe_checkpoint_hook, 'share_buffers', shared.append)
    hook = make_hook(runner)
    hook.before_val_epoch(runner)
    assert shared == [runner.model]
    save_at(hook, runner, 1)
    assert shared == [runner.model, runner.model, average.ema_model]


def test_validation_follows_the_swap_with_the_average():
    """Otherwise the buffers of the network that is not validated would be shared."""
    assert get_priority(SafeCheckpointHook.priority) > get_priority(EMAHook.priority)
