"""What is on disk when a save fails or the process is killed in between."""

import shutil
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


def test_a_new_best_changes_no_numbered_checkpoint(runner):
    """A checkpoint is of the state before its validation, which a resumed run repeats."""
    hook = make_hook(runner, max_keep_ckpts=1, save_best='mIoU')
    save_at(hook, runner, 3)
    before = Path(runner.work_dir, 'iter_3.pth').read_bytes()
    for step, value in ((3, 10), (4, 20)):
        runner.iter = step
        hook.after_val_epoch(runner, dict(mIoU=value))
        assert files(runner) == ['iter_3.pth']
        assert Path(runner.work_dir, 'iter_3.pth').read_bytes() == before
        assert pointer(runner) == f'{runner.work_dir}/iter_3.pth'


def test_by_epoch_the_checkpoint_knows_its_best(runner):
    """A run by epochs does not repeat the validation."""
    hook = SafeCheckpointHook(interval=1, max_keep_ckpts=1, save_best='mIoU')
    hook.before_train(runner)
    for epoch, value in ((1, 10), (2, 20)):
        runner.epoch = epoch - 1
        hook.after_train_epoch(runner)
        runner.epoch = epoch
        hook.after_val_epoch(runner, dict(mIoU=value))
    stored = torch.load(f'{runner.work_dir}/epoch_2.pth', weights_only=False)
    known = stored['message_hub']['runtime_info']
    assert known['best_score'] == 20 and known['best_key'] == 'mIoU'
    assert known['best_metrics'] == {'best_mIoU_epoch_2.pth': dict(mIoU=20)}
    assert files(runner, '*.pth') == ['best_mIoU_epoch_2.pth', 'epoch_2.pth']


def resume(runner, name, work_dir):
    resumed = FakeRunner(work_dir)
    stored = torch.load(f'{runner.work_dir}/{name}', weights_only=False)
    resumed.message_hub.load_state_dict(stored['message_hub'])
    return resumed


def test_a_surpassed_best_stays_until_a_checkpoint_knows_the_better_one(runner):
    """Killed before, the run goes on from a checkpoint whose best has to be there."""
    hook = make_hook(runner, max_keep_ckpts=1, save_best='mIoU')
    for step, value in ((2, 10), (4, 20)):
        runner.iter = step
        hook.after_val_epoch(runner, dict(mIoU=value))
        save_at(hook, runner, 3) if step == 2 else None
    assert files(runner, 'best*') == ['best_mIoU_iter_2.pth', 'best_mIoU_iter_4.pth']
    known = resume(runner, 'iter_3.pth', runner.work_dir).message_hub.get_info('best_ckpt')
    assert Path(known).name == 'best_mIoU_iter_2.pth' and Path(known).is_file()
    save_at(hook, runner, 6)
    assert files(runner, 'best*') == ['best_mIoU_iter_4.pth']
    runner.iter = 7
    hook.after_val_epoch(runner, dict(mIoU=30))
    hook.after_train(runner)
    assert files(runner, 'best*') == ['best_mIoU_iter_7.pth']


@pytest.mark.parametrize('metrics', [['mIoU'], ['mIoU', 'mAcc']])
@pytest.mark.parametrize('copied', [False, True])
def test_the_best_of_another_run_is_left_there(runner, tmp_path, metrics, copied):
    """A run goes on from a checkpoint of another one, or in a copy of its folder."""
    hook = make_hook(runner, save_best=metrics)
    runner.iter = 2
    hook.after_val_epoch(runner, dict.fromkeys(metrics, 10))
    save_at(hook, runner, 3)
    before = files(runner, '*.pth')
    other = tmp_path / 'other'
    shutil.copytree(runner.work_dir, other) if copied else other.mkdir()
    resumed = resume(runner, 'iter_3.pth', other)
    hook = make_hook(resumed, save_best=metrics)
    resumed.iter = 4
    hook.after_val_epoch(resumed, dict.fromkeys(metrics, 20))
    hook.after_train(resumed)
    assert files(runner, '*.pth') == before
    assert files(resumed, 'best*') == [f'best_{name}_iter_4.pth' for name in sorted(metrics)]


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
