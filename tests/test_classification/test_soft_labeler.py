import numpy as np
import pytest
import torch
from tiny_classification import listed, make_folders, tiny_classifier

import mmdmt.classification  # noqa: F401
from mmdmt.classification.soft_labeler import SoftLabeler
from mmdmt.pseudo.base_labeler import UnreadableImageError
from mmdmt.registry import MODELS

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('folders'))


@pytest.fixture(scope='module')
def checkpoint(tree):
    torch.manual_seed(0)
    model = MODELS.build(tiny_classifier())
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tree / 'network.pth')
    return str(tree / 'network.pth')


def labeler(tree, path, **settings):
    dataset = listed(tree, 'unlabeled', PIPELINE, labeled=False)
    settings = dict(dict(batch_size=5, num_workers=0), **settings)
    return SoftLabeler(str(path), tiny_classifier(), dataset, **settings)


def test_batches_do_not_matter(tree, checkpoint, tmp_path):
    read = []
    for size in (5, 24):
        maker = labeler(tree, tmp_path / f'{size}.npz', batch_size=size)
        manifest = maker.run(checkpoint, 0.5)
        assert manifest['num_images'] == 24 and '10 selected' in maker.summary(manifest)
        read.append(maker.store.read())
    np.testing.assert_allclose(read[0].probabilities, read[1].probabilities, atol=1e-3)
    assert read[0].names == read[1].names


def test_a_finished_file_is_used_and_another_ratio_or_network_is_labeled_anew(
    tree, checkpoint, tmp_path
):
    maker = labeler(tree, tmp_path / 'soft.npz')
    first = maker.run(checkpoint, 0.5)
    written = maker.store.path.stat().st_mtime_ns
    assert maker.run(checkpoint, 0.5) == first
    assert maker.store.path.stat().st_mtime_ns == written
    assert maker.run(checkpoint, 1.0)['num_selected'] == 24
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['head.fc.bias'] += 1
    torch.save(content, tmp_path / 'other.pth')
    assert maker.run(str(tmp_path / 'other.pth'), 1.0)['checkpoint'] != first['checkpoint']


def test_an_error_of_the_first_rank_is_raised(tree, checkpoint, tmp_path):
    with pytest.raises(ValueError, match='selects none'):
        labeler(tree, tmp_path / 'soft.npz').run(checkpoint, 0.05)
    assert not (tmp_path / 'soft.npz').exists()


def test_a_damaged_file_is_made_again(tree, checkpoint, tmp_path):
    maker = labeler(tree, tmp_path / 'soft.npz')
    manifest = maker.run(checkpoint, 0.5)
    whole, labels = maker.store.path.read_bytes(), maker.store.read().probabilities
    place = whole.index(b'probabilities') + 60  # the manifest can still be read
    flipped = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    for content in (whole[: len(whole) // 2], b'', flipped):
        maker.store.path.write_bytes(content)
        assert maker.run(checkpoint, 0.5) == manifest
        np.testing.assert_array_equal(maker.store.read().probabilities, labels)


def test_an_image_that_cannot_be_loaded_is_named(checkpoint, tmp_path):
    tree = make_folders(tmp_path / 'folders')
    path = tree / 'train' / 'green' / '006.png'
    path.write_bytes(b'')
    with pytest.raises(UnreadableImageError, match=r"green/006\.png .*list.*mode='full'"):
        labeler(tree, tmp_path / 'soft.npz').run(checkpoint, 0.5)
    assert not (tmp_path / 'soft.npz').exists()
