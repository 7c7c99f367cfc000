import numpy as np
import pytest
from tiny_classification import CLASSES, listed, make_cifar, make_folders

import mmdmt.classification  # noqa: F401
from mmdmt.classification.soft_labels import SoftLabelStore
from mmdmt.datasets import SemiDataset
from mmdmt.pseudo.store import StoreIncompleteError
from mmdmt.registry import DATASETS


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('folders'))


def build(tree, kind='labeled', **settings):
    return DATASETS.build(listed(tree, kind, [], **settings))


def test_names_and_labels_of_the_listed_images(tree):
    dataset = build(tree)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [info['name'] for info in infos] == (tree / 'labeled.txt').read_text().split()
    assert [CLASSES[info['gt_label']] for info in infos] == [
        info['name'].split('/')[0] for info in infos
    ]
    assert dataset.metainfo['classes'] == CLASSES


def test_unlabeled_images_have_no_label(tree):
    dataset = build(tree, 'unlabeled', labeled=False)
    assert len(dataset) == 24
    assert all('gt_label' not in dataset.get_data_info(i) for i in range(24))


def test_without_a_list_all_images(tree):
    config = listed(tree, 'labeled', [])
    config['ann_file'] = ''
    assert len(DATASETS.build(config)) == 36


def test_images_of_no_known_class(tree):
    """A folder of their own, beside labeled images."""
    config = listed(tree, 'unlabeled', [], labeled=False)
    config.update(ann_file='')
    config['dataset'].update(data_prefix='test/red', with_label=False)
    semi = SemiDataset([listed(tree, 'labeled', []), config])
    assert [len(source) for source in semi.datasets] == [6, 12]
    assert semi.datasets[1].get_data_info(0)['name'] == '000.png'


def test_images_that_are_no_files_are_numbered(tree, tmp_path, monkeypatch):
    """CIFAR-10 in the layout that mmpretrain reads."""
    from mmpretrain.datasets import CIFAR10

    make_cifar(tmp_path)
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    (tmp_path / 'labeled.txt').write_text('00005\n00018\n')
    dataset = DATASETS.build(
        dict(
            type='mmdmt.ListedDataset',
            dataset=dict(type='mmpretrain.CIFAR10', data_root=str(tmp_path), split='train'),
            data_root=str(tmp_path),
            ann_file='labeled.txt',
        )
    )
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [(info['name'], info['gt_label']) for info in infos] == [('00005', 1), ('00018', 2)]
    assert infos[0]['img'].shape == (32, 32, 3) and len(dataset.metainfo['classes']) == 10


def test_soft_labeled_images(tree, tmp_path):
    names = (tree / 'unlabeled.txt').read_text().split()
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 24).astype(np.float32)
    selected = np.arange(24) % 3 == 0
    store = SoftLabelStore(tmp_path / 'soft.npz')
    store.write(names, probabilities, selected, {})
    dataset = build(tree, 'unlabeled', labeled=False, soft_labels=str(store.path))
    assert len(dataset) == 8
    info = dataset.get_data_info(2)
    assert info['name'] == names[6] and info['gt_label'] == probabilities[6].argmax()
    np.testing.assert_allclose(info['soft_label'], probabilities[6], atol=1e-3)
    with pytest.raises(ValueError, match='no soft label of 6 images'):
        build(tree, 'labeled', labeled=False, soft_labels=str(store.path))
    with pytest.raises(StoreIncompleteError):
        build(tree, 'unlabeled', soft_labels=str(tmp_path / 'none.npz'))


def test_faulty_lists_are_refused(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.txt'):
        build(tree, 'none')
    faulty = tmp_path / 'faulty.txt'
    faulty.write_text('red/000.png\nred/999.png\n')
    config = listed(tree, 'labeled', [])
    config['ann_file'] = str(faulty)
    with pytest.raises(ValueError, match=r"2 images, 1 of which.*'red/999\.png'.*blue/000\.png"):
        DATASETS.build(config)
