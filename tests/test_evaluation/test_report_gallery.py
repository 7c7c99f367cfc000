"""Thumbnails of a report share their bytes."""

import base64
import io

import numpy as np
from PIL import Image

from mmdmt.evaluation.report.gallery import Gallery

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def opened(source):
    return Image.open(io.BytesIO(base64.b64decode(source.split(',')[1])))


def noise(rng, side=256):
    return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)


def test_colors_of_labels_and_errors():
    gallery = Gallery(PALETTE)
    label = np.array([[0, 1], [2, 255]], np.uint8)
    gallery.label(label)
    gallery.errors(label, np.array([[0, 2], [255, 1]], np.uint8))
    found = [np.asarray(opened(source).convert('RGBA')) for source in gallery.encode(10_000)]
    assert found[0][..., :3].reshape(-1, 3).tolist()[:3] == PALETTE
    assert found[0][..., 3].tolist() == [[255, 255], [255, 0]]
    assert found[1][..., 3].tolist() == [[255, 255], [0, 0]]  # known and with a label
    assert found[1][0, 0].tolist() != found[1][0, 1].tolist()


def test_pictures_shrink_until_they_fit():
    rng, gallery = np.random.default_rng(0), Gallery(PALETTE)
    for _ in range(20):
        gallery.photo(noise(rng))
    sources = gallery.encode(200_000)
    assert sum(map(len, sources)) <= 200_000
    sides = {max(opened(source).size) for source in sources}
    assert len(sides) == 1 and 32 < sides.pop() < 256


def test_what_never_fits_is_left_out():
    rng, gallery = np.random.default_rng(0), Gallery(PALETTE)
    for _ in range(10):
        gallery.photo(noise(rng, 64))
    sources = gallery.encode(5_000)
    assert len(sources) == 10 and sources[0] and sources[-1] is None
    assert sum(len(source) for source in sources if source) <= 5_000


def test_what_is_absent_has_no_number():
    gallery = Gallery(PALETTE)
    label = np.zeros((2, 2), np.uint8)
    assert gallery.photo(None) is gallery.label(None) is gallery.errors(label, None) is None
    assert gallery.encode(0) == []
