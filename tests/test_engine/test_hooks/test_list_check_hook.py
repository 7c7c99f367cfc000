import pytest
from tiny_classification import listed, make_folders

import mmdmt.classification  # noqa: F401
from mmdmt.datasets.problems import DatasetError
from mmdmt.engine.hooks.list_check_hook import ListCheckHook, check_listed
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
    append(tree, 'labeled', 'red/002.png\n')
    assert found(tree) == [('in both lists', 25), ('validation overlap', 7)]


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


def test_the_hook_refuses_to_train(tree, tmp_path):
    append(tree, 'unlabeled', 'red/000.png\n')
    with pytest.raises(DatasetError, match=r'in both lists.*unlabeled\.txt:25'):
        ListCheckHook().check(*configs(tree), str(tmp_path))
    ListCheckHook(mode='off').check(*configs(tree), str(tmp_path))
