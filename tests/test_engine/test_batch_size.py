"""Batch sizes that are those of all processes together."""

import copy

import pytest
from mmengine.registry import RUNNERS
from tiny_classification import RUNTIME, classification_config, make_folders, mutual_classification
from tiny_project import base_config, load_config, make_tree, mutual

from mmdmt.engine.batch_size import loader_of_process
from mmdmt.engine.mutual import preflight
from mmdmt.engine.runners import SemiRunner


def loader(batch_size, ratio=None):
    sampler = dict(type='DefaultSampler')
    if ratio:
        sampler = dict(batch_size=batch_size, source_ratio=ratio)
    return dict(batch_size=batch_size, sampler=sampler)


@pytest.mark.parametrize(
    ('total', 'ratio', 'processes', 'expected'),
    [
        (16, [1, 1], 1, [8, 8]),
        (16, [1, 1], 4, [2, 2]),
        (16, [1, 7], 2, [1, 7]),
        (12, [4], 3, [4]),
        # 1.5 and 4.5 are rounded to 2 and 4 images of all processes, not of each.
        (6, [1, 3], 2, [1, 2]),
    ],
)
def test_each_process_takes_its_share_of_every_source(total, ratio, processes, expected):
    whole = loader(total, ratio)
    before = copy.deepcopy(whole)
    share = loader_of_process(whole, processes)
    assert share['batch_size'] == share['sampler']['batch_size'] == total // processes
    assert share['sampler']['source_ratio'] == expected
    assert sum(expected) * processes == total
    assert whole == before


def test_samplers_of_one_source_need_no_ratio():
    assert loader_of_process(loader(6), 3) == dict(loader(6), batch_size=2)


@pytest.mark.parametrize(
    ('total', 'ratio', 'counts'), [(6, [1, 1], '[3, 3]'), (8, [1, 7], '[1, 7]'), (6, None, None)]
)
def test_a_batch_that_cannot_be_shared_is_refused(total, ratio, counts):
    with pytest.raises(ValueError, match=r'`batch_size_is_total`.*4 processes') as error:
        loader_of_process(loader(total, ratio), 4)
    assert f'`train_dataloader.batch_size={total}`' in str(error.value)
    assert 'multiples of 4' in str(error.value)
    assert counts is None or f'({counts} of the sources' in str(error.value)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


@pytest.fixture
def four_processes(monkeypatch):
    """As far as a runner is concerned that is not trained."""
    monkeypatch.setattr(SemiRunner, 'world_size', 4)
    monkeypatch.setattr(preflight, 'get_world_size', lambda: 4)


def test_the_config_of_a_run_keeps_the_total(tree, tmp_path, four_processes):
    """So that a run can be repeated from its work dir in any number of processes."""
    cfg = dict(base_config(tree, tmp_path), batch_size_is_total=True)
    cfg['train_dataloader']['batch_size'] = cfg['train_dataloader']['sampler']['batch_size'] = 16
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'total.py'))
    assert runner.cfg.train_dataloader.batch_size == 16 and runner.cfg.batch_size_is_total
    assert runner.train_dataloader.batch_size == 4
    assert runner.train_dataloader.sampler.items_per_batch == [2, 2]


def test_without_the_key_it_is_the_batch_of_each_process(tree, tmp_path, four_processes):
    runner = RUNNERS.build(load_config(base_config(tree, tmp_path), tmp_path / 'each.py'))
    assert runner.train_dataloader.batch_size == 4


def test_a_chain_refuses_the_batch_of_a_round_before_its_first_stage(
    tree, tmp_path, four_processes
):
    """Round 0 has 8 labeled images, rounds 4 and 4 in batches of 8; with 12 they have 6 and 6."""
    cfg = mutual(
        base_config(tree, tmp_path),
        supervised=dict(batch_size=8),
        round=dict(batch_size=12, source_ratio=[1, 1]),
    )
    cfg['batch_size_is_total'] = True
    with pytest.raises(ValueError, match=r'batch_size=12` \(\[6, 6\] of the sources'):
        RUNNERS.build(load_config(cfg, tmp_path / 'chain.py')).train()
    assert not list(tmp_path.glob('stage_*'))


def test_a_classification_chain_refuses_it_too(tmp_path, four_processes):
    root = make_folders(tmp_path / 'data')
    cfg = mutual_classification(classification_config(root, tmp_path))
    cfg['batch_size_is_total'] = True
    with pytest.raises(ValueError, match=r'batch_size=4` \(\[1, 3\] of the sources'):
        RUNNERS.build(load_config(cfg, tmp_path / 'chain.py', RUNTIME)).train()
