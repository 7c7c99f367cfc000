import shutil

import pytest
from tiny_classification import listed, make_folders

import mmdmt.classification  # noqa: F401
from mmdmt.classification import list_checks
from mmdmt.classification.list_checks import check_listed
from mmdmt.registry import DATASETS


@pytest.fixture
def tree(tmp_path):
    return make_folders(tmp_path / 'data')


def configs(tree):
    train = dict(
        type='mmdmt.SemiDataset',
        datasets=[listed(tree, 'labeled', []), listed(tree, 'unlabeled', [], labeled=False)],
    )
    return train, listed(tree, 'val', [])


def found(tree, **options):
    return sorted((p.kind, p.line) for p in check_listed(*configs(tree), **options))


def append(tree, kind, text):
    path = tree / f'{kind}.txt'
    path.write_text(path.read_text() + text)


def test_sound_data(tree):
    assert found(tree) == []
    train, val = configs(tree)
    assert check_listed(DATASETS.build(train), DATASETS.build(val)) == []


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
    kinds = [problem.kind for problem in check_listed(train, val)]
    assert kinds == ['validation overlap'] * 6
    assert check_listed(train) == []


def test_missing_list_and_unknown_names(tree):
    (tree / 'unlabeled.txt').unlink()
    append(tree, 'labeled', 'red/999.png\n')
    assert [kind for kind, _ in found(tree)] == ['missing list', 'unreadable data set']


def test_images_that_can_not_be_decoded(tree):
    (tree / 'train' / 'red' / '000.png').write_bytes(b'no image')
    assert found(tree) == [('corrupt image', 5)]
    assert found(tree, full=False) == []


def test_labels_that_are_not_made_yet_do_not_matter(tree):
    train, val = configs(tree)
    train['datasets'][1]['soft_labels'] = '/nowhere/soft_labels.npz'
    assert check_listed(train, val) == []


def folder(tree, name):
    return dict(type='mmpretrain.CustomDataset', data_root=str(tree), data_prefix=name)


def test_classes_of_the_test_set_are_numbered_as_those_of_training(tree):
    train, val = configs(tree)
    test = folder(tree, 'test')
    assert check_listed(train, val, test=test) == []
    shutil.rmtree(tree / 'test' / 'blue')
    (problem,) = check_listed(train, val, test=test)
    assert problem.kind == 'other classes' and problem.file == str(tree / 'test')
    assert 'it lacks blue: classes get wrong numbers' in problem.found
    (tree / 'test' / 'blue').mkdir()  # no images of a class are no harm
    (tree / 'test' / 'pink').mkdir()
    (problem,) = check_listed(train, val, test=DATASETS.build(dict(test, pipeline=[])))
    assert 'it also has pink' in problem.found
    test['metainfo'] = dict(classes=('red', 'green', 'blue'))
    shutil.rmtree(tree / 'test' / 'pink')
    (problem,) = check_listed(train, val, test=test)
    assert 'blue are in another order than those of training' in problem.found


def test_classes_of_the_validation_set_too(tree):
    train, val = configs(tree)
    val['metainfo'] = dict(classes=('a', 'b', 'c'))
    assert [problem.kind for problem in check_listed(train, val)] == ['other classes']


def test_a_test_set_that_is_not_there_does_not_keep_from_training(tree, caplog):
    train, val = configs(tree)
    assert check_listed(train, val, test=folder(tree, 'none')) == []


@pytest.mark.parametrize('count', [2, 5])
def test_the_head_has_as_many_classes_as_the_images(tree, count):
    train, val = configs(tree)
    (problem,) = check_listed(train, val, num_classes=count)
    assert problem.kind == 'number of classes'
    expected = f'`model.head.num_classes` is {count}, but the images have 3 classes: blue, green,'
    assert expected in problem.found and 'to 3' in problem.fix
    assert check_listed(train, val, num_classes=3) == []


def test_a_class_without_labels_is_warned_of(tree, monkeypatch):
    said = []
    monkeypatch.setattr(list_checks, 'print_log', lambda text, *args: said.append(text))
    train, val = configs(tree)
    assert check_listed(train, val) == [] and said == []
    names = (tree / 'labeled.txt').read_text().split()
    (tree / 'labeled.txt').write_text('\n'.join(n for n in names if 'blue' not in n))
    assert check_listed(train, val) == []
    (text,) = said
    assert 'labeled.txt: no labeled image of blue' in text
