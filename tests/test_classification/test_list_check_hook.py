import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_classification import RUNTIME, classification_config, make_folders
from tiny_project import load_config

import mmdmt.classification  # noqa: F401
from mmdmt.classification.list_check_hook import ListCheckHook
from mmdmt.datasets.checks.problems import DatasetError
from mmdmt.registry import MODELS, RUNNERS

PARTS = ('train', 'val', 'test')


@pytest.fixture
def tree(tmp_path):
    return make_folders(tmp_path / 'data')


def test_faulty_lists_are_refused(tree, tmp_path):
    cfg = classification_config(tree, tmp_path)
    data = cfg['train_dataloader']['dataset'], cfg['val_dataloader']['dataset'], str(tmp_path)
    with open(tree / 'unlabeled.txt', 'a') as file:
        file.write('red/000.png\n')
    with pytest.raises(DatasetError, match=r'in both lists.*unlabeled\.txt:25'):
        ListCheckHook().check(*data)
    ListCheckHook(mode='off').check(*data)


def test_a_check_that_fails_itself_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r'the data check failed: .*NoSuchDataset'):
        ListCheckHook().check(dict(type='NoSuchDataset'), None, str(tmp_path))


def test_training_is_refused_with_other_classes_in_head_or_test_set(tree, tmp_path):
    shutil.rmtree(tree / 'test' / 'green')
    cfg = classification_config(tree, tmp_path)
    cfg['model']['head']['num_classes'] = 5
    loaders = {f'_{part}_dataloader': cfg[f'{part}_dataloader'] for part in PARTS}
    runner = SimpleNamespace(model=MODELS.build(cfg['model']), work_dir=str(tmp_path), **loaders)
    with pytest.raises(DatasetError) as caught:
        ListCheckHook().before_loading(runner)
    text = str(caught.value)
    assert '`model.head.num_classes` is 5, but the images have 3 classes' in text
    assert f'{tree}/test' in text and 'it lacks green' in text


def test_testing_on_other_classes_than_the_checkpoint_has_is_refused(tree, tmp_path):
    cfg = load_config(classification_config(tree, tmp_path), tmp_path / 'config.py', RUNTIME)
    meta = dict(dataset_meta=dict(classes=('blue', 'green', 'red')))
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'network.pth')
    cfg.load_from = str(tmp_path / 'network.pth')
    shutil.rmtree(tree / 'test' / 'blue')
    with pytest.raises(DatasetError, match='compared with the checkpoint, it lacks blue'):
        RUNNERS.build(cfg).test()


def test_a_network_trained_on_other_classes_may_be_started_from():
    """Testing after training, in one process: the classes are those of the training."""
    hook = ListCheckHook()
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=('tench', 'goldfish'))))
    hook.after_load_checkpoint(None, checkpoint)
    hook.before_test(SimpleNamespace(_train_loop=object()))
