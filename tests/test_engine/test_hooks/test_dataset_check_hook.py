from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from tiny_data_tree import DataTree

from mmdmt import distributed
from mmdmt.datasets.checks.problems import DatasetError, format_problems
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.engine.hooks import dataset_check_hook
from mmdmt.engine.hooks.dataset_check_hook import DatasetCheckHook
from mmdmt.registry import DATASETS, HOOKS


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(dataset_check_hook, 'print_log', lambda text, *_: lines.append(text))
    return lines


@pytest.fixture
def tree(tmp_path):
    init_default_scope('mmseg')
    return DataTree(tmp_path / 'data')


def make_runner(tree, val=True):
    train = DATASETS.build(
        dict(
            type='mmdmt.SemiDataset',
            datasets=[
                tree.config('labeled'),
                dict(tree.config('unlabeled'), type='mmdmt.UnlabeledDataset', metainfo=None),
            ],
        )
    )
    val_loop = None
    if val:
        dataset = DATASETS.build(tree.config('val'))
        val_loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    return SimpleNamespace(
        model=None,
        train_dataloader=SimpleNamespace(dataset=train),
        val_loop=val_loop,
        work_dir=str(tree.root.parent / 'work'),
    )


def corrupt(path):
    path.write_bytes(path.read_bytes()[:400])


def break_mask(tree):
    tree.write_mask('a', np.full((40, 48), 77, np.uint8))


def test_sound_data_may_train(tree, log):
    runner = make_runner(tree)
    DatasetCheckHook().before_train(runner)
    assert log == ['data check (full): 0 problems']
    DatasetCheckHook().before_train(make_runner(tree, val=False))


def test_faulty_data_is_refused_with_the_message_of_the_tool(tree):
    runner = make_runner(tree)
    corrupt(tree.image('d'))
    break_mask(tree)
    tree.mask('v').unlink()
    with pytest.raises(DatasetError) as caught:
        DatasetCheckHook().before_train(runner)
    assert [problem.kind for problem in caught.value.problems] == [
        'label id',
        'corrupt image',
        'missing mask',
    ]
    found = check_dataset(
        runner.train_dataloader.dataset, runner.val_loop.dataloader.dataset, progress=False
    )
    assert str(caught.value) == format_problems(found)


def test_fast_mode_does_not_decode(tree):
    runner = make_runner(tree)
    break_mask(tree)
    DatasetCheckHook(mode='fast').before_train(runner)
    tree.image('e').unlink()
    with pytest.raises(DatasetError, match='missing image'):
        DatasetCheckHook(mode='fast').before_train(runner)


def test_off_checks_nothing(tree, log):
    runner = make_runner(tree)
    tree.image('a').unlink()
    DatasetCheckHook(mode='off').before_train(runner)
    assert log == []


@pytest.mark.parametrize(
    ('cache', 'where'), [(True, 'work/dataset_check.json'), (False, None), ('own', 'own.json')]
)
def test_cache_file(tree, cache, where):
    root = tree.root.parent
    cache = str(root / 'own.json') if cache == 'own' else cache
    DatasetCheckHook(cache=cache).before_train(make_runner(tree))
    written = [str(p.relative_to(root)) for p in root.rglob('*.json')]
    assert written == ([] if where is None else [where])


def test_other_ranks_get_the_error_without_checking(tree, monkeypatch):
    runner = make_runner(tree)
    break_mask(tree)
    sent = check_dataset(runner.train_dataloader.dataset, progress=False)

    def broadcast(objects):
        assert objects == [None, None]
        objects[0] = sent

    monkeypatch.setattr(distributed, 'is_main_process', lambda: False)
    monkeypatch.setattr(distributed, 'broadcast_object_list', broadcast)
    monkeypatch.setattr(dataset_check_hook, 'check_dataset', None)
    with pytest.raises(DatasetError, match='label id'):
        DatasetCheckHook().before_train(runner)


def test_a_check_that_fails_itself_reaches_the_other_ranks(tree, monkeypatch):
    sent = []

    def failing(*args, **kwargs):
        raise RuntimeError('disk on fire')

    monkeypatch.setattr(dataset_check_hook, 'check_dataset', failing)
    monkeypatch.setattr(distributed, 'broadcast_object_list', sent.extend)
    with pytest.raises(DatasetError, match='the data check failed: RuntimeError: disk on fire'):
        DatasetCheckHook().before_train(make_runner(tree))
    assert isinstance(sent[1], DatasetError)


def test_our_runner_checks_configs_before_anything_is_built(tree):
    """A list that is not there is reported, where mmseg would use the whole folder."""
    labeled = dict(tree.config('labeled'), ann_file='no_such_list.txt')
    loader = dict(dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled]))
    runner = SimpleNamespace(
        model=None,
        _train_dataloader=loader,
        _val_dataloader=None,
        _test_dataloader=None,
        work_dir=str(tree.root.parent / 'work'),
    )
    with pytest.raises(DatasetError, match=r'no_such_list\.txt'):
        DatasetCheckHook().before_loading(runner)


def test_data_are_checked_once(tree, log):
    runner = make_runner(tree)
    runner._train_dataloader, runner._val_dataloader = runner.train_dataloader, None
    runner._test_dataloader = None
    hook = DatasetCheckHook()
    hook.before_loading(runner)
    hook.before_train(runner)
    assert len(log) == 1


def test_mode_is_checked():
    with pytest.raises(ValueError, match=r"mode` must be one of \['full', 'fast', 'off'\], got"):
        DatasetCheckHook(mode='quick')


def test_hook_is_registered_and_comes_early():
    hook = HOOKS.build(dict(type='mmdmt.DatasetCheckHook', mode='off'))
    assert isinstance(hook, DatasetCheckHook)
    assert hook.priority == 'VERY_HIGH'
