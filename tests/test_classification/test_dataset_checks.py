"""The data checks on datasets of classification, and the hook that runs them."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_classification import RUNTIME, classification_config, listed, make_cifar, make_folders
from tiny_project import load_config

import mmdmt.classification  # noqa: F401
from mmdmt.datasets.checks import classes
from mmdmt.datasets.checks.problems import DatasetError
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.engine.hooks import DatasetCheckHook
from mmdmt.registry import DATASETS, MODELS, RUNNERS


@pytest.fixture
def tree(tmp_path):
    return make_folders(tmp_path / 'data')


def configs(tree):
    train = dict(
        type='mmdmt.SemiDataset',
        datasets=[listed(tree, 'labeled', []), listed(tree, 'unlabeled', [], labeled=False)],
    )
    return train, listed(tree, 'val', [])


def check(train, val=None, **options):
    return check_dataset(train, val, progress=False, **options)


def found(tree, **options):
    return sorted((p.kind, p.line) for p in check(*configs(tree), **options))


def append(tree, kind, text):
    path = tree / f'{kind}.txt'
    path.write_text(path.read_text() + text)


def test_sound_data(tree):
    assert found(tree) == []
    train, val = configs(tree)
    assert check(DATASETS.build(train), DATASETS.build(val)) == []


def test_overlaps_are_found_with_their_lines(tree):
    append(tree, 'unlabeled', 'red/000.png\n')
    append(tree, 'unlabeled', 'red/003.png\n')
    append(tree, 'labeled', 'red/002.png\n')
    assert found(tree) == [
        ('in both lists', 25),
        ('validation overlap', 7),
        ('validation overlap', 26),
    ]


def test_a_whole_folder_may_hold_labeled_but_no_validation_images(tree):
    train, val = configs(tree)
    train['datasets'][1]['ann_file'] = ''
    kinds = [problem.kind for problem in check(train, val)]
    assert kinds == ['validation overlap'] * 6
    assert check(train) == []


def test_missing_list_and_unknown_names(tree):
    (tree / 'unlabeled.txt').unlink()
    append(tree, 'labeled', 'red/999.png\n')
    assert [kind for kind, _ in found(tree)] == ['missing list', 'unreadable dataset']


def test_odd_lines_and_names_twice(tree):
    append(tree, 'labeled', '\nred/000.png\n')
    assert found(tree) == [('duplicate id', 8), ('odd line', 7)]


def test_images_that_are_no_files_are_known_by_number(tmp_path, monkeypatch):
    from mmpretrain.datasets import CIFAR10

    make_cifar(tmp_path)
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    inner = dict(type='mmpretrain.CIFAR10', data_root=str(tmp_path), split='train')
    for kind, names in (('labeled', '00005\n00018\n'), ('unlabeled', '00003\n00018\n00007\n')):
        (tmp_path / f'{kind}.txt').write_text(names)
    source = dict(type='mmdmt.ListedDataset', dataset=inner, data_root=str(tmp_path))
    train = [
        dict(source, ann_file='labeled.txt'),
        dict(source, ann_file='unlabeled.txt', labeled=False),
    ]
    val = dict(source, ann_file='unlabeled.txt')
    (problem,) = check(train)
    assert problem.kind == 'in both lists' and problem.where == f'{tmp_path}/unlabeled.txt:2'
    assert f'00018 is labeled, too ({tmp_path}/labeled.txt:2)' in problem.found
    assert [p.kind for p in check(train[1:], val)] == ['validation overlap'] * 3


def test_images_that_can_not_be_decoded(tree):
    path = tree / 'train' / 'red' / '000.png'
    path.write_bytes(path.read_bytes()[:100])
    assert found(tree) == [('corrupt image', 5)]
    assert found(tree, full=False) == []


def test_labels_that_are_not_made_yet_do_not_matter(tree):
    train, val = configs(tree)
    train['datasets'][1]['soft_labels'] = '/nowhere/soft_labels.npz'
    assert check(train, val) == []


def folder(tree, name):
    return dict(type='mmpretrain.CustomDataset', data_root=str(tree), data_prefix=name)


def test_classes_of_the_test_set_are_numbered_as_those_of_training(tree):
    train, val = configs(tree)
    test = folder(tree, 'test')
    assert check(train, val, test=test) == []
    shutil.rmtree(tree / 'test' / 'blue')
    (problem,) = check(train, val, test=test)
    assert problem.kind == 'other classes' and problem.file == str(tree / 'test')
    assert 'it lacks blue: classes get wrong numbers' in problem.found
    (tree / 'test' / 'blue').mkdir()  # no images of a class are no harm
    (tree / 'test' / 'pink').mkdir()
    (problem,) = check(train, val, test=DATASETS.build(dict(test, pipeline=[])))
    assert 'it also has pink' in problem.found
    test['metainfo'] = dict(classes=('red', 'green', 'blue'))
    shutil.rmtree(tree / 'test' / 'pink')
    (problem,) = check(train, val, test=test)
    assert 'blue are in another order than those of training' in problem.found


def test_classes_of_the_validation_set_too(tree):
    train, val = configs(tree)
    val['metainfo'] = dict(classes=('a', 'b', 'c'))
    assert [problem.kind for problem in check(train, val)] == ['other classes']


def test_a_test_set_that_is_not_there_does_not_keep_from_training(tree, caplog):
    train, val = configs(tree)
    assert check(train, val, test=folder(tree, 'none')) == []


@pytest.mark.parametrize('count', [2, 5])
def test_the_head_has_as_many_classes_as_the_images(tree, count):
    train, val = configs(tree)
    (problem,) = check(train, val, num_classes=count)
    assert problem.kind == 'number of classes'
    expected = f'`model.head.num_classes` is {count}, but the images have 3 classes: blue, green,'
    assert expected in problem.found and 'to 3' in problem.fix
    assert check(train, val, num_classes=3) == []


def test_a_class_without_labels_is_warned_of(tree, monkeypatch):
    logged = []
    monkeypatch.setattr(classes, 'print_log', lambda text, *args: logged.append(text))
    train, val = configs(tree)
    assert check(train, val) == [] and logged == []
    names = (tree / 'labeled.txt').read_text().split()
    (tree / 'labeled.txt').write_text('\n'.join(n for n in names if 'blue' not in n))
    assert check(train, val) == []
    (text,) = logged
    assert 'labeled.txt: no labeled image of blue' in text


# --- The hook


def test_training_is_refused_with_other_classes_in_head_or_test_set(tree, tmp_path):
    shutil.rmtree(tree / 'test' / 'green')
    cfg = classification_config(tree, tmp_path)
    cfg['model']['head']['num_classes'] = 5
    loaders = {f'_{key}': cfg[key] for key in cfg if key.endswith('_dataloader')}
    runner = SimpleNamespace(model=MODELS.build(cfg['model']), work_dir=str(tmp_path), **loaders)
    with pytest.raises(DatasetError) as caught:
        DatasetCheckHook().before_loading(runner)
    text = str(caught.value)
    assert '`model.head.num_classes` is 5, but the images have 3 classes' in text
    assert f'{tree}/test' in text and 'it lacks green' in text


@pytest.mark.usefixtures('unformatted_configs')
def test_testing_on_other_classes_than_the_checkpoint_has_is_refused(tree, tmp_path):
    cfg = load_config(classification_config(tree, tmp_path), tmp_path / 'config.py', RUNTIME)
    meta = dict(dataset_meta=dict(classes=('blue', 'green', 'red')))
    weights = MODELS.build(cfg.model.copy()).state_dict()
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'network.pth')
    cfg.load_from = str(tmp_path / 'network.pth')
    shutil.rmtree(tree / 'test' / 'blue')
    with pytest.raises(DatasetError, match='compared with the checkpoint, it lacks blue'):
        RUNNERS.build(cfg).test()


def test_a_network_trained_on_other_classes_may_be_started_from():
    """Testing after training, in one process: the classes are those of the training."""
    hook = DatasetCheckHook()
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=('tench', 'goldfish'))))
    hook.after_load_checkpoint(None, checkpoint)
    hook.before_test(SimpleNamespace(_train_loop=object(), model=None))
