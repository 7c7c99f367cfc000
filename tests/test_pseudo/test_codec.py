import json
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdmt.pseudo import ClassBalancedThreshold, DamagedMapError, apply_thresholds
from mmdmt.pseudo.codec import FORMAT_VERSION, MAGIC, decode_map, encode_map
from mmdmt.pseudo.quantization import compand, expand, expansion_table, quantize


def realistic_maps(num_classes, scale, num=4, size=(256, 320), stride=8, seed=0):
    """Label and confidence of up-sampled smooth logits, as a network with this stride gives."""
    gen = torch.Generator().manual_seed(seed)
    blobs = torch.randn(num, num_classes, size[0] // 64 + 1, size[1] // 64 + 1, generator=gen)
    blobs = blobs + 1.5 * torch.randn(num, num_classes, 1, 1, generator=gen)  # what a picture shows
    coarse = F.interpolate(
        scale * blobs, size=[side // stride for side in size], mode='bicubic', align_corners=False
    )
    coarse = coarse + 0.2 * torch.randn(coarse.shape, generator=gen)
    logits = F.interpolate(coarse, size=size, mode='bilinear', align_corners=False)
    confidence, label = logits.softmax(dim=1).max(dim=1)
    return label.numpy().astype(np.uint8), confidence.numpy()


def test_scale_is_monotone_and_inverted():
    confidence = np.concatenate([np.linspace(0, 1, 1001), 1 - 2.0 ** -np.arange(1, 25)])
    confidence = np.sort(confidence).astype(np.float32)
    position = compand(confidence)
    assert position[0] == 0 and position[-1] == 1
    assert (np.diff(position) >= 0).all()
    np.testing.assert_allclose(expand(position), confidence, atol=2e-6)
    assert expand(1.0) == 1


@pytest.mark.parametrize('levels', [256, 4096])
def test_quantization_error_is_small_everywhere(levels):
    confidence = np.sort(np.random.default_rng(0).random(100_000)).astype(np.float32)
    confidence = np.concatenate([confidence, 1 - (1 - confidence) * 1e-3])
    error = np.abs(expansion_table(levels)[quantize(confidence, levels)] - confidence)
    assert error.max() <= 1.01 / levels  # linear part
    doubt = 1 - confidence.astype(np.float64)
    tail = (doubt < 1e-2) & (doubt > 1e-4)  # beyond, float32 itself is coarse
    assert (error[tail] / doubt[tail]).max() <= 18 / levels  # relative, logarithmic part


def test_ends_are_exact():
    confidence = np.array([0, 1], np.float32)
    assert expansion_table(512)[quantize(confidence, 512)].tolist() == [0, 1]


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (13, 17)])
@pytest.mark.parametrize('num_classes', [1, 2, 21, 256])
def test_round_trip(shape, num_classes):
    rng = np.random.default_rng(0)
    label = rng.integers(num_classes, size=shape).astype(np.uint8)
    confidence = rng.random(shape).astype(np.float32)
    got_label, got_confidence = decode_map(encode_map(label, confidence))
    np.testing.assert_array_equal(got_label, label)
    assert got_label.dtype == np.uint8 and got_confidence.dtype == np.float32
    levels = min(8192, 65536 // len(np.unique(label)))
    np.testing.assert_allclose(got_confidence, confidence, atol=1.01 / levels)


def test_encoding_what_was_decoded_changes_nothing():
    label, confidence = (maps[0] for maps in realistic_maps(21, 10))
    once = decode_map(encode_map(label, confidence))
    twice = decode_map(encode_map(*once))
    np.testing.assert_array_equal(once[1], twice[1])


@pytest.mark.parametrize('num_classes, scale', [(5, 4), (21, 4), (21, 10), (21, 25), (150, 8)])
@pytest.mark.parametrize('ratio', [0.2, 0.6, 0.8])
def test_thresholds_and_kept_pixels_are_those_of_the_floats(num_classes, scale, ratio):
    label, confidence = realistic_maps(num_classes, scale)
    stored = np.stack([decode_map(encode_map(*maps))[1] for maps in zip(label, confidence)])
    kept, limits = [], []
    for values in (confidence, stored):
        threshold = ClassBalancedThreshold(num_classes, pixel_stride=1)
        for maps in zip(label, values):
            threshold.update(*maps)
        limits.append(threshold.compute(ratio).numpy())
        kept.append(apply_thresholds(label, values, limits[-1]) != 255)
    np.testing.assert_allclose(limits[1], limits[0], atol=5e-4)
    assert (kept[0] != kept[1]).mean() < 1e-3
    assert kept[1].mean() == pytest.approx(kept[0].mean(), abs=1e-3)


@pytest.mark.parametrize(
    'num_classes, scale, most', [(5, 4, 0.7), (21, 4, 0.7), (21, 10, 0.8), (150, 8, 0.8)]
)
def test_files_are_small(num_classes, scale, most):
    label, confidence = realistic_maps(num_classes, scale)
    size = sum(len(encode_map(*maps)) for maps in zip(label, confidence))
    assert size / label.size < most


def test_saturated_confidences_are_nearly_free():
    label = np.zeros((100, 100), np.uint8)
    assert len(encode_map(label, np.ones((100, 100)))) < 200


def test_every_kind_of_damage_is_found():
    label, confidence = (maps[0, :32, :32] for maps in realistic_maps(5, 4))
    data = encode_map(label, confidence)
    damaged = [data[:length] for length in range(0, len(data), 7)]
    for position in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        damaged.append(bytes(flipped))
    for content in [*damaged, b'', b'\x89PNG', bytes(len(data))]:
        with pytest.raises(DamagedMapError):
            decode_map(content)


def with_header(planes=bytes(12), **changes):
    """A file whose checksum is right, of a map of 2 x 3 pixels."""
    header = dict(version=FORMAT_VERSION, shape=[2, 3], classes=[0, 7])
    header = {key: value for key, value in {**header, **changes}.items() if value is not None}
    return MAGIC + zlib.compress(json.dumps(header).encode() + b'\n' + planes)


def test_the_header_of_these_tests_is_a_good_one():
    label, confidence = decode_map(with_header())
    assert (label == 0).all() and label.shape == confidence.shape == (2, 3)


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        (with_header(version=99), 'version 99'),
        (MAGIC + zlib.compress(b'no line end'), 'not complete or damaged'),
        (MAGIC + zlib.compress(b'\xff\xfe\n'), 'not complete or damaged'),
        (with_header(classes=None), 'not complete or damaged'),
        (with_header(classes=[]), '0 classes'),
        (with_header(shape=[2]), 'not complete or damaged'),
        (with_header(shape=[0, 3]), r'shape \[0, 3\]'),
        (with_header(shape=[2, 2]), 'not 8 bytes'),
        (with_header(shape=[3, 3]), 'not 18 bytes'),
        (with_header(shape=[10**5, 10**5]), r'shape \[100000, 100000\]'),
    ],
)
def test_a_header_that_makes_no_sense_is_damage(content, found):
    with pytest.raises(DamagedMapError, match=found):
        decode_map(content)


def test_a_small_file_cannot_fill_the_memory():
    content = with_header(bytes(100 * 2**20))
    assert len(content) < 2**17
    tracemalloc.start()
    with pytest.raises(DamagedMapError, match='not 12 bytes'):
        decode_map(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_map_knows_its_image():
    label, confidence = np.zeros((2, 3), np.uint8), np.zeros((2, 3))
    data = encode_map(label, confidence, 'one')
    assert (decode_map(data, 'one')[0] == label).all()
    with pytest.raises(DamagedMapError, match="it is the map of 'one'"):
        decode_map(data, 'other')
    decode_map(with_header(), 'a map of before, without a name')


def test_bad_maps_are_refused():
    label, confidence = np.zeros((2, 3), np.uint8), np.zeros((2, 3))
    for bad in (label.astype(np.int64), label[0], label[:0]):
        with pytest.raises(ValueError, match='uint8'):
            encode_map(bad, confidence)
    with pytest.raises(ValueError, match=r'must be \(2, 3\)'):
        encode_map(label, confidence[:1])
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r'in \[0, 1\]'):
            encode_map(label, np.full((2, 3), value))
