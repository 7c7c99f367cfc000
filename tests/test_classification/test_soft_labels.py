import numpy as np
import pytest

from mmdmt.classification.soft_labeler import SoftLabeler
from mmdmt.classification.soft_labels import SELECTIONS, SoftLabelStore, select_by_confidence
from mmdmt.pseudo.store import StoreIncompleteError, StoreMismatchError


def soft(count=50, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(classes, 0.05), count).astype(np.float32)


def names(count=50):
    return [f'class/{index:03}.png' for index in range(count)]


@pytest.mark.parametrize('ratio', [0.2, 0.5, 0.83])
def test_strict_selection_is_the_published_one(ratio):
    confidence = np.random.default_rng(0).random(200).astype(np.float32)
    threshold = np.sort(confidence)[int(-ratio * 200 + 1)]
    expected = confidence > threshold
    assert (select_by_confidence(confidence, ratio) == expected).all()
    assert 0 <= ratio * 200 - expected.sum() <= 3


@pytest.mark.parametrize('rule', SELECTIONS)
def test_a_ratio_of_1_keeps_all_images(rule):
    for confidence in (np.linspace(0.1, 1, 200), np.full(3, 0.5)):
        assert select_by_confidence(confidence, 1.0, rule, confidence > 0.5).tolist() == [
            True
        ] * len(confidence)


def test_too_small_a_ratio_is_told_what_helps():
    confidence = np.linspace(0, 1, 10)
    with pytest.raises(ValueError, match=r"use a larger ratio, or .*selection='rank'"):
        select_by_confidence(confidence, 0.01)
    with pytest.raises(ValueError, match=r'use a larger ratio$'):
        select_by_confidence(confidence, 0.01, 'rank')


def test_strict_selection_drops_ties_and_rank_does_not():
    confidence = np.array([0.9] * 6 + [0.5] * 4, np.float32)
    with pytest.raises(ValueError, match=r'selects none of 10.*rank'):
        select_by_confidence(confidence, 0.5)
    assert select_by_confidence(confidence, 0.5, 'rank').tolist() == [True] * 5 + [False] * 5


def test_selection_is_global_and_not_by_class():
    probabilities = np.array([[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5, np.float32)
    selected = select_by_confidence(probabilities.max(1), 0.5, 'rank')
    assert selected[:5].all() and not selected[5:].any()


def test_selection_by_class_takes_the_share_of_each(tmp_path):
    label = np.array([0] * 6 + [1] * 4 + [2])
    confidence = np.array([0.9, 0.8, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.35, 0.2, 0.1], np.float32)
    selected = select_by_confidence(confidence, 0.5, 'class', label)
    assert np.flatnonzero(selected).tolist() == [0, 1, 2, 6, 8, 10]
    probabilities = np.full((11, 3), 0.01, np.float32)
    probabilities[np.arange(11), label] = confidence
    labeler = SoftLabeler(str(tmp_path / 'soft.npz'), {}, {}, selection='class')
    labeler._write(names(11), [probabilities], dict(ratio=0.5))
    assert (labeler.store.read().selected == selected).all()


def test_a_ratio_that_selects_nothing_is_refused():
    """The published formula would point at the least confident image and select nearly all."""
    with pytest.raises(ValueError, match='selects none of 4'):
        select_by_confidence(np.array([0.1, 0.2, 0.3, 0.4]), 0.3)


@pytest.mark.parametrize('rule', ['strict', 'rank'])
def test_confidences_that_are_nan_are_refused(rule):
    with pytest.raises(ValueError, match='NaN or infinite'):
        select_by_confidence(np.array([0.5, np.nan, 0.7]), 1.0, rule)


@pytest.mark.parametrize(
    'ratio, rule, key', [(0, 'rank', 'ratio'), (1.1, 'rank', 'ratio'), (1, 'x', 'x')]
)
def test_wrong_settings_are_refused(ratio, rule, key):
    with pytest.raises(ValueError, match=key):
        select_by_confidence(np.array([0.1, 0.2]), ratio, rule)


def test_what_is_read_is_what_was_written(tmp_path):
    probabilities, store = soft(), SoftLabelStore(tmp_path / 'stage' / 'soft_labels.npz')
    selected = select_by_confidence(probabilities.max(1), 0.5)
    manifest = store.write(names(), probabilities, selected, dict(ratio=0.5))
    stored = store.read()
    assert stored.names == names() and (stored.selected == selected).all()
    assert stored.manifest == store.manifest == manifest
    np.testing.assert_allclose(stored.probabilities, probabilities, atol=1e-3)
    # Exact where it decides: the label, its confidence, hence weights and selection.
    assert (stored.probabilities.argmax(1) == probabilities.argmax(1)).all()
    assert (stored.probabilities.max(1) == probabilities.max(1)).all()
    assert manifest['num_images'] == 50 and manifest['num_selected'] == selected.sum()
    assert sum(manifest['predicted']) == 50 and sum(manifest['kept']) == selected.sum()


def test_labels_survive_probabilities_that_16_bits_cannot_distinguish(tmp_path):
    probabilities = np.array([[0.49999, 0.50001], [0.5, 0.5], [1.0, 1e-9]], np.float32)
    store = SoftLabelStore(tmp_path / 'soft.npz')
    store.write(['a', 'b', 'c'], probabilities, np.ones(3, bool), {})
    read = store.read().probabilities
    assert read.argmax(1).tolist() == [1, 0, 0]
    assert (read.max(1) == probabilities.max(1)).all()


def test_the_file_is_compact(tmp_path):
    store = SoftLabelStore(tmp_path / 'soft.npz')
    store.write(names(5000), soft(5000), np.ones(5000, bool), {})
    assert store.path.stat().st_size < 5000 * (2 * 10 + 20)
    assert [path.name for path in tmp_path.iterdir()] == ['soft.npz']


def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path):
    store = SoftLabelStore(tmp_path / 'soft.npz')
    with pytest.raises(StoreIncompleteError, match=r'soft\.npz does not exist'):
        store.read()
    store.write(names(), soft(), np.ones(50, bool), {})
    whole = store.path.read_bytes()
    for content in (whole[: len(whole) // 2], b'x' * 50):
        store.path.write_bytes(content)
        with pytest.raises(StoreMismatchError, match=r'soft\.npz is damaged'):
            store.read()
    middle = len(whole) // 3
    store.path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(StoreMismatchError):
        store.read()


def test_a_crash_while_writing_leaves_no_file(tmp_path, monkeypatch):
    store = SoftLabelStore(tmp_path / 'soft.npz')

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmdmt.files.os.replace', crash)
    with pytest.raises(KeyboardInterrupt):
        store.write(names(), soft(), np.ones(50, bool), {})
    assert not store.is_complete and list(tmp_path.iterdir()) == []


def test_what_is_no_probability_is_refused(tmp_path):
    store = SoftLabelStore(tmp_path / 'soft.npz')
    with pytest.raises(ValueError, match='diverged'):
        store.write(names(), soft() * np.nan, np.ones(50, bool), {})
    with pytest.raises(ValueError, match='49 names'):
        store.write(names(49), soft(), np.ones(50, bool), {})
    with pytest.raises(ValueError, match='differ'):
        store.write(['a'] * 50, soft(), np.ones(50, bool), {})
