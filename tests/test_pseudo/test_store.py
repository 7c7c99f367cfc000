import json
import os
import re
import zlib
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from mmdmt.pseudo import (
    ClassBalancedThreshold,
    DamagedMapError,
    PseudoLabelError,
    PseudoLabelStore,
    StoreIncompleteError,
    StoreMismatchError,
)

NAMES = ['aachen/aachen_000001', 'aachen/aachen_000002', 'bochum/b 1.5', '2007_000032']
META = dict(num_classes=4, ratio=0.5, checkpoint=dict(file='iter_9.pth', sha256='ab', bytes=9))


def maps(name, size=(24, 32)):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    label = rng.integers(3, size=size).astype(np.uint8)
    confidence = rng.random(size, np.float32)
    return label, confidence


def write(root, names=NAMES, meta=META):
    store = PseudoLabelStore(root)
    store.begin(meta)
    for name in names:
        store.put(name, *maps(name))
    return store


def thresholds_of(store, names, ratio=0.5):
    threshold = ClassBalancedThreshold(4, pixel_stride=2)
    for name in names:
        threshold.update(*store.get(name))
    return threshold.compute(ratio)


def finished(root):
    store = write(root)
    manifest = store.finish(NAMES, thresholds_of(store, NAMES))
    return store, manifest


def test_maps_and_names_round_trip(tmp_path):
    write(tmp_path)
    store = PseudoLabelStore(str(tmp_path))  # another process
    for name in NAMES:
        label, confidence = store.get(name)
        np.testing.assert_array_equal(label, maps(name)[0])
        np.testing.assert_allclose(confidence, maps(name)[1], atol=3e-4)


def test_names_that_look_alike_are_different_files(tmp_path):
    names = ['a', 'a.png', 'a.plc', 'b/a', 'b/a.png']
    store = write(tmp_path, names)
    for name in names:
        np.testing.assert_array_equal(store.get(name)[0], maps(name)[0])


@pytest.mark.parametrize('name', ['', '/etc/x', '../x', 'a/../x', 'a//b', './a'])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    store = write(tmp_path)
    with pytest.raises(ValueError, match='relative path'):
        store.put(name, *maps('x'))


def test_a_store_is_used_only_when_it_is_complete(tmp_path):
    store = PseudoLabelStore(tmp_path)
    assert not store.is_complete
    store = write(tmp_path, NAMES[:2])
    assert not store.is_complete
    for read in (lambda: store.manifest, lambda: store.get_thresholded(NAMES[0])):
        with pytest.raises(StoreIncompleteError, match=r'manifest\.json'):
            read()
    with pytest.raises(StoreIncompleteError, match=f'{NAMES[2]}, {NAMES[3]}'):
        store.finish(NAMES, np.zeros(4))
    assert not store.is_complete


def test_missing_and_damaged_maps_are_named(tmp_path):
    store = write(tmp_path, NAMES[:3])
    assert store.missing(NAMES) == NAMES[3:]
    path = tmp_path / 'maps' / f'{NAMES[1]}.plc'
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert store.missing(NAMES) == [NAMES[1], NAMES[3]]
    with pytest.raises(DamagedMapError, match='aachen_000002'):
        store.get(NAMES[1])
    with pytest.raises(StoreIncompleteError, match=NAMES[3]):
        store.get(NAMES[3])
    with pytest.raises(StoreIncompleteError, match=f'2 image.*{NAMES[1]}, {NAMES[3]}'):
        store.finish(NAMES, np.zeros(4))


def test_an_error_about_many_images_stays_short(tmp_path):
    store = write(tmp_path, [])
    with pytest.raises(StoreIncompleteError, match='and 95 more'):
        store.finish([f'image_{index}' for index in range(100)], np.zeros(4))


def test_an_interrupted_pass_ends_with_the_same_manifest(tmp_path):
    _, expected = finished(tmp_path / 'whole')
    write(tmp_path / 'cut', NAMES[:2])
    folder = tmp_path / 'cut' / 'maps'
    left = [folder / 'aachen' / '.x.plc.partial-123', folder / '.y.plc.partial-123']
    for path in left:
        path.write_bytes(b'half')  # of a process that was killed
    store = PseudoLabelStore(tmp_path / 'cut')
    store.begin(META)
    assert not any(path.exists() for path in left)
    for name in store.missing(NAMES):
        store.put(name, *maps(name))
    assert store.finish(NAMES, thresholds_of(store, NAMES)) == expected


def test_a_write_that_fails_leaves_the_old_map(tmp_path, monkeypatch):
    store = write(tmp_path)

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        store.put(NAMES[0], *maps('other'))
    np.testing.assert_array_equal(store.get(NAMES[0])[0], maps(NAMES[0])[0])
    assert not list((tmp_path / 'maps').rglob('.*'))


def test_manifest_describes_the_store(tmp_path):
    store, manifest = finished(tmp_path)
    assert store.is_complete
    assert store.manifest == json.loads(json.dumps(manifest))
    assert manifest['checkpoint'] == META['checkpoint']
    assert manifest['ratio'] == 0.5 and manifest['num_classes'] == 4
    assert manifest['num_images'] == 4 and manifest['num_pixels'] == 4 * 24 * 32
    labels, kept, confidences = [], [], []
    for name in NAMES:
        labels.append(store.get(name)[0])
        kept.append(store.get_thresholded(name)[0])
        confidences.append(store.get(name)[1])
    labels, kept, confidences = (np.stack(values) for values in (labels, kept, confidences))
    assert manifest['kept_share'] == pytest.approx((kept != 255).mean())
    assert manifest['kept_share'] == pytest.approx(0.5, abs=0.05)
    assert manifest['mean_confidence'] == pytest.approx(confidences.mean(), rel=1e-6)
    for key, values in (('predicted_pixels', labels), ('kept_pixels', kept)):
        assert manifest[key] == [(values == index).sum() for index in range(4)]
    assert manifest['files'] == NAMES


def test_thresholds_are_applied_when_labels_are_read(tmp_path):
    _, manifest = finished(tmp_path)
    store = PseudoLabelStore(tmp_path)
    label, confidence = store.get(NAMES[0])
    thresholds = np.array(manifest['thresholds'], np.float32)
    expected = np.where(confidence >= thresholds[label], label, 255)
    got, got_confidence = store.get_thresholded(NAMES[0])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_confidence, confidence)
    assert got.dtype == np.uint8


def test_pixels_without_a_class_stay_so(tmp_path):
    store = write(tmp_path, [])
    label, confidence = maps('x')
    label[:, :5] = 255
    store.put('x', label, confidence)
    manifest = store.finish(['x'], np.zeros(4))
    assert (store.get_thresholded('x')[0][:, :5] == 255).all()
    assert manifest['num_pixels'] == 24 * 27
    assert manifest['kept_share'] == 1
    assert manifest['mean_confidence'] == pytest.approx(confidence[:, 5:].mean(), abs=1e-4)


def test_ranks_may_share_the_counting(tmp_path):
    store, expected = finished(tmp_path)
    thresholds = thresholds_of(store, NAMES)
    shares = [store.measure(NAMES[rank::2], thresholds) for rank in (1, 0)]
    assert store.finish(NAMES, thresholds, sum(shares)) == expected


def put_share(root, names):
    store = PseudoLabelStore(root)
    for name in names:
        store.put(name, *maps(name))


def test_processes_write_at_the_same_time(tmp_path):
    names = [f'city_{index % 3}/{index}' for index in range(40)]
    store = write(tmp_path, [])
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(put_share, [tmp_path] * 2, [names[::2], names[1::2]]))
    assert store.missing(names) == []
    assert store.finish(names, np.zeros(4))['num_images'] == 40


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_thresholds_that_are_not_finite_are_refused(tmp_path, value):
    finished(tmp_path)
    store = PseudoLabelStore(tmp_path)
    store.begin(dict(META, ratio=0.8))
    with pytest.raises(ValueError, match=f'thresholds of .* must be finite.*{value}'):
        store.finish(NAMES, [0.5, value, 0.5, 0.5])
    assert not store.is_complete


def test_another_ratio_keeps_the_maps_but_not_the_manifest(tmp_path):
    finished(tmp_path)
    store = PseudoLabelStore(tmp_path)
    store.begin(META)
    assert store.is_complete  # nothing to do
    store.begin(dict(META, ratio=0.8))
    assert not store.is_complete
    assert store.missing(NAMES) == []
    manifest = store.finish(NAMES, thresholds_of(store, NAMES, 0.8))
    assert manifest['ratio'] == 0.8
    assert manifest['kept_share'] == pytest.approx(0.8, abs=0.05)


def test_maps_of_another_network_are_refused(tmp_path):
    finished(tmp_path)
    store = PseudoLabelStore(tmp_path)
    other = dict(META, checkpoint=dict(META['checkpoint'], sha256='cd'))
    with pytest.raises(StoreMismatchError, match=r'checkpoint.*ab.*cd'):
        store.begin(other)
    assert store.is_complete  # nothing was touched


DAMAGE = [b'', b'{"num_cla', None]  # None: lost


def damage(path, content):
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize('content', DAMAGE)
def test_a_damaged_manifest_counts_as_not_finished(tmp_path, content):
    _, expected = finished(tmp_path)
    damage(tmp_path / 'manifest.json', content)
    store = PseudoLabelStore(tmp_path)
    assert not store.is_complete
    with pytest.raises(StoreIncompleteError, match=r'manifest\.json is not .*goes on where it was'):
        store.get_thresholded(NAMES[0])
    store.begin(META)
    assert store.missing(NAMES) == [], 'no map was damaged'
    assert store.finish(NAMES, thresholds_of(store, NAMES)) == expected


@pytest.mark.parametrize('content', DAMAGE)
def test_maps_without_meta_are_not_trusted(tmp_path, content):
    write(tmp_path)
    damage(tmp_path / 'meta.json', content)
    store = PseudoLabelStore(tmp_path)
    with pytest.raises(StoreMismatchError, match=r'another origin.*Delete'):
        store.begin(META)


@pytest.mark.parametrize('content', DAMAGE)
def test_a_damaged_meta_without_maps_is_written_again(tmp_path, content):
    write(tmp_path, [])
    damage(tmp_path / 'meta.json', content)
    write(tmp_path)
    assert PseudoLabelStore(tmp_path).missing(NAMES) == []


def test_every_error_of_stored_labels_is_of_one_kind():
    """By it the dataset distinguishes them from faults of an image, which it replaces."""
    for error in (DamagedMapError, StoreIncompleteError, StoreMismatchError):
        assert issubclass(error, PseudoLabelError)


def test_writing_opens_a_finished_store_again(tmp_path):
    store, _ = finished(tmp_path)
    store.put(NAMES[0], *maps('other'))
    assert not store.is_complete


def test_bad_input_is_refused(tmp_path):
    store = PseudoLabelStore(tmp_path / 'new')
    for num_classes in (None, 0, 256):
        with pytest.raises(ValueError, match='num_classes'):
            store.begin(dict(num_classes=num_classes))
    store.begin(META)
    label, confidence = maps('x')
    with pytest.raises(ValueError, match=r"'x'.*diverged"):
        store.put('x', label, confidence * np.nan)


def test_a_manifest_of_another_format_is_refused(tmp_path):
    _, manifest = finished(tmp_path)
    (tmp_path / 'manifest.json').write_text(json.dumps(dict(manifest, format_version=99)))
    with pytest.raises(StoreMismatchError, match='99'):
        PseudoLabelStore(tmp_path).get_thresholded(NAMES[0])


@pytest.mark.parametrize(
    ('key', 'value', 'found'),
    [
        ('thresholds', [0.5, float('nan'), 0.5, 0.5], r'`thresholds\[1\]` is nan'),
        ('thresholds', [0.5, 0.5, 0.5, 1.5], r'`thresholds\[3\]` is 1\.5'),
        ('thresholds', [0.5, 0.5, '0.5', 0.5], r"`thresholds\[2\]` is '0\.5'"),
        ('thresholds', [0.5, 0.5, 0.5], '`thresholds` is no list of 4 numbers'),
        ('thresholds', 0.5, '`thresholds` is no list of 4 numbers'),
        ('thresholds', [0.0, 0.0, 0.0, 0.0], '`checksum` is not'),
        ('files', NAMES[1:], '`checksum` is not'),
        ('kept_share', 0.9, '`checksum` is not'),
    ],
)
def test_a_manifest_that_was_changed_is_refused_by_file_and_key(tmp_path, key, value, found):
    _, manifest = finished(tmp_path)
    (tmp_path / 'manifest.json').write_text(json.dumps(dict(manifest, **{key: value})))
    with pytest.raises(
        StoreMismatchError, match=rf'manifest\.json was changed.*{found}.*Delete it'
    ):
        PseudoLabelStore(tmp_path).get_thresholded(NAMES[0])


def test_a_manifest_without_a_checksum_is_read(tmp_path):
    """Of a store that an earlier version wrote."""
    _, manifest = finished(tmp_path)
    del manifest['checksum']
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    assert PseudoLabelStore(tmp_path).manifest == manifest


def test_exchanged_maps_are_noticed_and_labeled_again(tmp_path):
    store, _ = finished(tmp_path)
    one, other = (tmp_path / 'maps' / f'{name}.plc' for name in NAMES[:2])
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises(DamagedMapError, match=rf"000001\.plc .*the map of '{NAMES[1]}'"):
        store.get_thresholded(NAMES[0])
    assert store.missing(NAMES) == NAMES[:2]


@pytest.mark.parametrize('name', ['a' * 210, 'ü' * 105, 'folder/' + 'a' * 210])
def test_a_name_too_long_for_a_file_is_refused_before_anything_is_written(tmp_path, name):
    store = write(tmp_path, [])
    with pytest.raises(ValueError, match=r'too long.*\d+ bytes'):
        store.put(name, *maps('x'))
    longest = 'a' * int(LONGEST.search(_refusal(store, name)).group(1))
    store.put(longest, *maps('x'))
    assert store.missing([longest]) == []


LONGEST = re.compile(r'(\d+) bytes are the most')


def _refusal(store, name):
    with pytest.raises(ValueError, match='too long') as caught:
        store.get(name)
    return str(caught.value)
