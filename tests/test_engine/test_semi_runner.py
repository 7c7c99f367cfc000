import copy
import multiprocessing
import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from tiny_project import base_config, labeled_only, load_config, make_tree, online

from mmdmt.checkpoint import UntrustedCheckpointError, save_atomically
from mmdmt.engine.runners import SemiRunner


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def config(tree, work_dir, max_iters=2, **extra):
    cfg = labeled_only(base_config(tree, work_dir, max_iters))
    hooks = cfg['default_hooks']
    for name, settings in extra.pop('default_hooks', {}).items():
        hooks.setdefault(name, {}).update(settings)
    cfg.update(extra)
    return load_config(cfg, work_dir / 'tiny.py')


def build(tree, work_dir, **extra):
    return RUNNERS.build(config(tree, work_dir, **extra))


def warnings_of(runner):
    """What a runner warned of, from its log file."""
    logs = [path for path in os.scandir(runner.log_dir) if path.name.endswith('.log')]
    with open(logs[0].path) as stream:
        return [line for line in stream if 'WARNING' in line]


@pytest.fixture(scope='module')
def finished(tree, tmp_path_factory):
    """A finished run of two iterations with validation and a best checkpoint."""
    work_dir = tmp_path_factory.mktemp('finished')
    runner = build(tree, work_dir, default_hooks=dict(checkpoint=dict(save_best='mIoU')))
    runner.train()
    return work_dir, runner


class Payload:
    def __reduce__(self):
        return os.mkdir, ('hacked',)


def test_config_names_the_runner(finished):
    assert type(finished[1]) is SemiRunner


def test_checkpoints_load_without_any_allow_list(finished):
    work_dir, runner = finished
    # The validation metric is a NumPy number in the message hub.
    assert isinstance(runner.message_hub.get_info('best_score'), (float, np.floating))
    for path in (work_dir / 'iter_2.pth', *work_dir.glob('best_mIoU_iter_*.pth')):
        loaded = torch.load(path, weights_only=True)
        assert loaded['meta']['iter'] == 2
        assert loaded['meta']['dataset_meta']['classes'] == list('abcd')


def test_log_history_and_counters_come_back(finished, tree, tmp_path):
    work_dir, runner = finished
    resumed = build(tree, tmp_path, load_from=str(work_dir / 'iter_2.pth'), resume=True)
    resumed.train()
    assert resumed.iter == 2
    for key, history in runner.message_hub.log_scalars.items():
        if key.startswith('train/'):
            restored = resumed.message_hub.get_scalar(key)
            assert isinstance(restored, HistoryBuffer)
            assert np.array_equal(restored.data[0], history.data[0]), key


def test_a_checkpoint_of_stock_mmengine_is_resumed(tree, tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False))
    cfg = config(tree, tmp_path, default_hooks=hooks)
    cfg.pop('runner_type')
    Runner.from_cfg(cfg).train()
    checkpoint = str(tmp_path / 'iter_2.pth')
    runner = build(tree, tmp_path, max_iters=3, load_from=checkpoint, resume=True)
    runner.train()
    assert runner.iter == 3
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 3


def test_a_run_is_not_resumed_with_another_method(finished, tree, tmp_path):
    checkpoint = str(finished[0] / 'iter_2.pth')
    settings = dict(load_from=checkpoint, resume=True)
    method = online(base_config(tree, tmp_path), 'mmdmt.FixMatch')['model']
    with pytest.raises(ValueError, match=r'trained with a EncoderDecoder, but .* FixMatch'):
        build(tree, tmp_path, model=method, **settings).train()


@pytest.mark.parametrize('resume', [False, True])
def test_a_checkpoint_that_could_run_code_is_refused(finished, tree, tmp_path, monkeypatch, resume):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(finished[0] / 'iter_2.pth', weights_only=True)
    save_atomically(dict(checkpoint, extra=Payload()), 'bad.pth')
    runner = build(tree, tmp_path, load_from='bad.pth', resume=resume)
    with pytest.raises(UntrustedCheckpointError, match='mkdir'):
        runner.train()
    assert not os.path.exists('hacked')
    trusting = build(
        tree, tmp_path, load_from='bad.pth', resume=False, trusted_checkpoints=['bad.pth']
    )
    trusting.train()
    assert os.path.exists('hacked')


def test_pretrained_backbones_that_could_run_code_are_refused(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_atomically(dict(state_dict={}, extra=Payload()), 'bad.pth')
    cfg = config(tree, tmp_path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='bad.pth')
    with pytest.raises(UntrustedCheckpointError, match='mkdir'):
        RUNNERS.build(cfg).train()
    assert not os.path.exists('hacked')


def test_config_text_in_a_checkpoint_is_not_executed(finished, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(finished[0] / 'iter_2.pth', weights_only=True)
    checkpoint['meta']['config'] = '__import__("os").mkdir("hacked")'
    save_atomically(checkpoint, 'bad.pth')
    build(tree, tmp_path, load_from='bad.pth', resume=True).train()
    assert not os.path.exists('hacked')


def test_resuming_an_empty_work_dir_starts_afresh(tree, tmp_path):
    runner = build(tree, tmp_path, resume=True)
    runner.train()
    assert (tmp_path / 'iter_2.pth').is_file()


def test_resuming_beyond_the_end_trains_nothing(finished, tree, tmp_path):
    checkpoint = str(finished[0] / 'iter_2.pth')
    runner = build(tree, tmp_path, max_iters=1, load_from=checkpoint, resume=True)
    runner.train()
    assert runner.iter == 2
    # What it ends with is the checkpoint that it was given.
    assert [path.name for path in tmp_path.glob('*.pth')] == ['final.pth']
    assert os.path.samefile(tmp_path / 'final.pth', checkpoint)


def test_a_validation_that_is_repeated_moves_the_learning_rate_once(tree, tmp_path):
    """The checkpoint of iteration 2 becomes the best, and is validated again by a resumed run."""
    plateau = dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater', patience=0)
    settings = dict(max_iters=4, param_scheduler=[dict(plateau, by_epoch=True)])
    settings['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=2))
    states = []
    for name in ('whole', 'resumed'):
        (tmp_path / name).mkdir()
        runner = build(tree, tmp_path / name, default_hooks=hooks, **settings)
        runner.train()
        states.append((runner.param_schedulers[0].state_dict(), runner.optim_wrapper.get_lr()))
        settings.update(load_from=str(tmp_path / 'whole' / 'iter_2.pth'), resume=True)
    assert states[0] == states[1]
    assert states[0][0]['last_step'] == 1  # counts from 0: two validations


@pytest.mark.parametrize('save_best', ['mIoU', None])
def test_a_checkpoint_is_validated_without_training(finished, tree, tmp_path, save_best):
    checkpoint, hook = str(finished[0] / 'iter_2.pth'), dict(save_best=save_best)
    runner = build(tree, tmp_path, load_from=checkpoint, default_hooks=dict(checkpoint=hook))
    trained = finished[1].message_hub.get_scalar('val/mIoU').current()
    assert runner.val()['mIoU'] == pytest.approx(trained)
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize('seed', [7, None])
def test_the_seed_of_the_checkpoint_wins(finished, tree, tmp_path, seed):
    runner = build(
        tree,
        tmp_path,
        max_iters=3,
        load_from=str(finished[0] / 'iter_2.pth'),
        resume=True,
        randomness=dict(seed=seed),
    )
    assert runner.seed != 0
    runner.train()
    assert runner.seed == 0
    assert runner.train_dataloader.sampler.seed == 0
    assert any('Going on with seed 0' in line for line in warnings_of(runner))


@pytest.mark.parametrize(
    'train_cfg, match',
    [
        (dict(max_iters=0), r'train_cfg\.max_iters=0'),
        (dict(max_iters=2.5), r'train_cfg\.max_iters=2\.5'),
        (dict(max_iters=2, val_interval=0), r'train_cfg\.val_interval=0'),
    ],
)
def test_impossible_lengths_are_refused(tree, tmp_path, train_cfg, match):
    runner = build(tree, tmp_path, train_cfg=dict(type='IterBasedTrainLoop', **train_cfg))
    with pytest.raises(ValueError, match=match):
        runner.train()


@pytest.mark.parametrize(
    'hook', [dict(by_epoch=True), dict(_delete_=True, type='CheckpointHook', interval=2)]
)
def test_checkpoints_by_epoch_are_refused(tree, tmp_path, hook):
    runner = build(tree, tmp_path, default_hooks=dict(checkpoint=hook))
    with pytest.raises(ValueError, match='would save nothing before the end'):
        runner.train()


def test_two_averages_are_refused(tree, tmp_path):
    """Such as one of an older config in `custom_hooks` beside that of the base."""
    average = dict(type='EMAHook')
    runner = build(tree, tmp_path, default_hooks=dict(ema=average), custom_hooks=[average])
    with pytest.raises(ValueError, match=r'2 EMAHooks .*default_hooks\.ema'):
        runner.train()


def test_a_seed_that_no_checkpoint_stores_is_refused(tree, tmp_path):
    with pytest.raises(ValueError, match='diff_rank_seed'):
        build(tree, tmp_path, randomness=dict(seed=0, diff_rank_seed=True))


def test_settings_that_break_exact_resuming_are_warned_of(tree, tmp_path):
    cfg = config(tree, tmp_path)
    cfg.train_dataloader.dataset = cfg.train_dataloader.dataset.datasets[0]
    cfg.optim_wrapper.accumulative_counts = 4
    runner = RUNNERS.build(cfg)
    runner.train()
    text = ''.join(warnings_of(runner))
    assert 'not a mmdmt.SemiDataset' in text
    assert 'accumulative_counts=4' in text


def test_no_such_warning_by_default(finished):
    text = ''.join(warnings_of(finished[1]))
    assert 'SemiDataset' not in text
    assert 'accumulative' not in text


def test_channels_last_stores_convolutions_that_way(tree, tmp_path, finished):
    runner = build(tree, tmp_path, channels_last=True)
    weight = runner.model.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    runner.train()
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert (
        not finished[1]
        .model.backbone.layer1[0]
        .conv1.weight.is_contiguous(memory_format=torch.channels_last)
    )


def test_processes_that_load_images_end_with_the_training(tree, tmp_path):
    """Else a garbage collection, as between the stages of a chain, waits 5 seconds for each."""
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=2, num_workers=1))
    cfg['val_dataloader'].update(num_workers=1, persistent_workers=True)
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py'))
    workers = []
    after = runner.call_hook

    def call_hook(name, **kwargs):
        if name == 'after_train':
            workers.extend(multiprocessing.active_children())
        after(name, **kwargs)

    runner.call_hook = call_hook
    runner.train()
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)
    assert 'mIoU' in runner.val()  # with new ones


def test_other_launchers_need_a_gpu(tree, tmp_path, monkeypatch):
    monkeypatch.setattr('mmdmt.engine.runners.semi_runner.get_device', lambda: 'cpu')
    with pytest.raises(RuntimeError, match="launcher='pytorch'"):
        build(tree, tmp_path, launcher='slurm')


def test_config_is_not_changed(tree, tmp_path):
    cfg = config(tree, tmp_path)
    before = copy.deepcopy(cfg.to_dict())
    SemiRunner.from_cfg(cfg)
    assert cfg.to_dict() == before
