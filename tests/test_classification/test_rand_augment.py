from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DefaultScope

import mmdmt.classification  # noqa: F401
from mmdmt.classification import RandAugment

POLICIES = [dict(type='Rotate', magnitude_range=(0, 30), prob=1.0), dict(type='Invert', prob=1.0)]


def build(policies=POLICIES, **settings):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return RandAugment(policies=policies, **settings)


def test_every_image_has_a_magnitude_from_1_to_the_maximum(monkeypatch):
    augment = build(POLICIES[:1], max_magnitude=10)
    seen = []
    rotate = augment.transforms[0]
    monkeypatch.setattr(
        type(rotate), 'transform', lambda self, r: seen.append(self.magnitude_level) or r
    )
    np.random.seed(0)
    for _ in range(500):
        augment(dict(img=np.zeros((8, 8, 3), np.uint8)))
    assert set(seen) == set(range(1, 11))
    assert max(Counter(seen).values()) < 100


def test_one_transform_for_an_image_by_default():
    augment = build()
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.random.seed(0)
    kinds = Counter(
        bool((augment(dict(img=image.copy()))['img'] == 255 - image).all()) for _ in range(40)
    )
    assert 5 < kinds[True] < 35


def test_the_same_seed_gives_the_same_image():
    augment = build()
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    out = []
    for _ in range(2):
        np.random.seed(3)
        out.append(augment(dict(img=image.copy()))['img'])
    assert (out[0] == out[1]).all()


def test_no_magnitude_is_refused():
    with pytest.raises(ValueError, match='max_magnitude'):
        build(max_magnitude=0)


def test_the_list_of_the_paper_with_cutout():
    names = [type(transform).__name__ for transform in build('paper').transforms]
    assert len(names) == 14 and 'Identity' in names
    augment = build('paper', cutout=16)
    assert type(augment.transforms[-1]).__name__ == 'Cutout'
    assert augment.transforms[-1].magnitude_range == (0, 16)
    assert all(getattr(transform, 'prob', 1.0) == 1.0 for transform in augment.transforms)


def test_identity_changes_nothing():
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    augment = build([dict(type='mmdmt.Identity')])
    assert (augment(dict(img=image.copy()))['img'] == image).all()


def test_colors_of_rgb_images_are_weighed_as_such():
    """Without color an image is as bright as to the eye: red weighs 0.299, blue 0.114."""
    gray = dict(type='ColorTransform', magnitude_range=(1, 1), prob=1.0, random_negative_prob=1.0)
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 200
    found = {
        order: build([gray], channel_order=order)(dict(img=image.copy()))['img'].max()
        for order in ('rgb', 'bgr')
    }
    assert found['rgb'] == pytest.approx(0.299 * 200, abs=1)
    assert found['bgr'] == pytest.approx(0.114 * 200, abs=1)
    with pytest.raises(ValueError, match='channel_order'):
        build(channel_order='RGB')


def test_channels_keep_their_places():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    augment = build([dict(type='Invert', prob=1.0)], channel_order='rgb')
    assert (augment(dict(img=image.copy()))['img'] == 255 - image).all()
