"""A run ends with a checkpoint to use, and says which one it is and why."""

import json
import os

import pytest
import torch
from mmengine.registry import RUNNERS
from tiny_project import base_config, labeled_only, load_config, make_tree, mean_teacher, mutual

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.engine.final import Candidate, conclude
from mmdmt.engine.hooks import SafeCheckpointHook


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


class FixedScores:
    """Validations whose metrics are given: what is chosen by them is known beforehand."""

    def __init__(self, monkeypatch, scores):
        self.scores = iter(scores)
        for loop in ('mmengine.runner.loops.ValLoop', 'mmdmt.engine.loops.NetworksValLoop'):
            monkeypatch.setattr(f'{loop}.run', lambda val: self._run(val))

    def _run(self, loop):
        metrics = next(self.scores)
        loop.runner.call_hook('after_val_epoch', metrics=metrics)
        return metrics


def run(cfg, path, **changes):
    cfg = load_config(cfg, path)
    cfg.merge_from_dict(changes)
    runner = RUNNERS.build(cfg)
    runner.train()
    return runner


def final(work_dir):
    return json.loads((work_dir / 'final.json').read_text())


def test_the_best_checkpoint_on_validation_is_final(tree, tmp_path, monkeypatch):
    FixedScores(monkeypatch, [dict(aAcc=m, mIoU=m) for m in (10.0, 30.0, 20.0)])
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=6, interval=6))
    cfg['train_cfg']['val_interval'] = 2
    runner = run(cfg, tmp_path / 'c.py')
    found = final(tmp_path)
    assert found['source'] == 'best_mIoU_iter_4.pth'
    assert found['metrics'] == dict(aAcc=30.0, mIoU=30.0)
    assert found['network'] == '' and found['method'] == 'supervised'
    assert 'mIoU (30.00)' in found['why']
    assert [each['metrics']['mIoU'] for each in found['scores']] == [30.0, 20.0]
    loaded = torch.load(tmp_path / found['checkpoint'], weights_only=True)
    assert loaded['meta']['iter'] == 4
    # It stays when the file that it is a link to is removed, and the config beside it can be read.
    os.remove(tmp_path / found['source'])
    assert load_checkpoint_file(tmp_path / 'final.pth')['meta']['iter'] == 4
    assert (tmp_path / found['config']).is_file()
    printed = (tmp_path / runner.timestamp / f'{runner.timestamp}.log').read_text()
    assert f'predict.py {tmp_path} IMAGES --out DIR' in printed


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(tree, tmp_path, monkeypatch):
    scores = [dict(mIoU=m) for m in (30.0, 10.0, 20.0)]
    FixedScores(monkeypatch, [*scores[:1], *scores[:2], scores[2]])
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=6, interval=2))
    cfg['train_cfg']['val_interval'] = 2
    run(cfg, tmp_path / 'c.py', **{'train_cfg.max_iters': 2})
    assert final(tmp_path)['source'] == 'best_mIoU_iter_2.pth'
    run(cfg, tmp_path / 'c.py', resume=True)  # validates iteration 2 again
    assert final(tmp_path)['metrics'] == dict(mIoU=30.0)


def test_without_validation_it_is_the_last(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=2))
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[key] = None
    cfg['train_cfg'].pop('val_interval')
    run(cfg, tmp_path / 'c.py')
    assert final(tmp_path)['source'] == 'iter_2.pth'
    assert final(tmp_path)['metrics'] == {}
    assert 'no best one was kept' in final(tmp_path)['why']


@pytest.mark.parametrize('key, network', [('auto', 'teacher'), ('student/mIoU', 'student')])
def test_the_network_that_predicts_or_was_chosen_by_is_named(
    tree, tmp_path, monkeypatch, key, network
):
    metrics = {'student/mIoU': 50.0, 'teacher/mIoU': 40.0, 'mIoU': 40.0}
    FixedScores(monkeypatch, [metrics])
    cfg = mean_teacher(base_config(tree, tmp_path, max_iters=2))
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    cfg['default_hooks']['checkpoint']['save_best'] = key
    run(cfg, tmp_path / 'c.py')
    found = final(tmp_path)
    assert found['network'] == network and found['method'] == 'mean_teacher'
    assert found['metrics']['mIoU'] == metrics[f'{network}/mIoU']
    assert ('though student scored 50.00' in found['why']) == (network == 'teacher')
    assert {(e['checkpoint'], e['network']) for e in found['scores']} >= {
        ('iter_2.pth', 'student'),
        ('iter_2.pth', 'teacher'),
    }


def test_metrics_that_nothing_can_go_by_keep_no_best(tree, tmp_path, monkeypatch):
    FixedScores(monkeypatch, [dict(odd=1.0)])
    run(labeled_only(base_config(tree, tmp_path, max_iters=2)), tmp_path / 'c.py')
    assert not list(tmp_path.glob('best_*'))
    assert final(tmp_path)['source'] == 'iter_2.pth'


def test_a_run_that_begins_takes_the_end_of_the_one_before_away(tree, tmp_path, monkeypatch):
    FixedScores(monkeypatch, [dict(mIoU=1.0)])
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=2))
    run(cfg, tmp_path / 'c.py')

    def killed(*_, **__):
        assert not (tmp_path / 'final.pth').exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(SafeCheckpointHook, 'before_train', killed)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, tmp_path / 'c.py')
    assert not (tmp_path / 'final.json').exists()


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError

    monkeypatch.setattr(os, 'link', no_links)
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(1))), path)
    chosen = Candidate(str(path), '', dict(mIoU=1.0, odd=float('nan')), str(tmp_path / 'c.py'))
    conclude(str(tmp_path), chosen, 'because', [chosen], 'supervised')
    assert torch.load(tmp_path / 'final.pth', weights_only=True)['state_dict']['a'] == 1
    assert final(tmp_path)['metrics'] == dict(mIoU=1.0)  # JSON has no NaN
    assert not list(tmp_path.glob('.*partial*'))


@pytest.fixture(scope='module')
def chain(tree, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('chain')
    cfg = mutual(base_config(tree, work_dir, max_iters=2), ratios=[1.0], ensemble=True)
    cfg['mutual']['round']['max_iters'] = 2
    with pytest.MonkeyPatch.context() as patch:
        FixedScores(patch, [dict(mIoU=m) for m in (90.0, 80.0, 40.0, 50.0, 60.0)])
        yield work_dir, run(cfg, work_dir / 'c.py')


def test_a_chain_ends_with_the_best_of_its_last_round_and_the_ensemble(chain):
    work_dir = chain[0]
    found = final(work_dir)
    assert found['source'] == 'ensemble/ensemble.pth'  # not a stage of an earlier round
    assert found['config'] == 'ensemble/config.py' and found['method'] == 'dmt'
    assert [each['metrics']['mIoU'] for each in found['scores']] == [40.0, 50.0, 60.0]
    assert 'runs 2 networks' in found['why']


def test_an_ensemble_stores_config_and_classes_like_any_checkpoint(chain):
    meta = torch.load(chain[0] / 'final.pth', weights_only=True)['meta']
    assert "type='mmdmt.EnsembleSegmentor'" in meta['cfg']
    assert meta['dataset_meta']['classes'] == list('abcd')


def test_stages_keep_no_best_that_nothing_takes_and_one_config(chain):
    for folder in ('stage_0_a', 'stage_1_b', 'ensemble'):
        names = [path.name for path in (chain[0] / folder).iterdir() if path.is_file()]
        assert not [name for name in names if name.startswith('best')]
        assert [name for name in names if name.endswith('.py')] == ['config.py']
        assert 'final.json' not in names


def test_a_chain_that_is_made_again_has_no_end_yet(chain):
    work_dir, runner = chain
    runner.redo('round_1.a')
    assert not (work_dir / 'final.json').exists() and not (work_dir / 'final.pth').exists()
