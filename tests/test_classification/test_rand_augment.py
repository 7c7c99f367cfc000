from collections import Counter

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image, ImageEnhance, ImageOps

import mmdmt.classification  # noqa: F401
from mmdmt.classification import RandAugment
from mmdmt.classification.rand_augment import PILLOW_OPERATIONS

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


# ------------------------------------------------------------------------- the released list

#: Values at magnitudes 0 and 10 of the package with which the published figures were made.
RANGES = dict(
    AutoContrast=(0, 1),
    Equalize=(0, 1),
    Invert=(0, 1),
    Rotate=(0, 30),
    Posterize=(0, 4),
    Solarize=(0, 256),
    SolarizeAdd=(0, 110),
    Color=(0.1, 1.9),
    Contrast=(0.1, 1.9),
    Brightness=(0.1, 1.9),
    Sharpness=(0.1, 1.9),
    ShearX=(0, 0.3),
    ShearY=(0, 0.3),
    CutoutAbs=(0, 40),
    TranslateXabs=(0, 100),
    TranslateYabs=(0, 100),
)
EITHER_WAY = {'Rotate', 'ShearX', 'ShearY', 'TranslateXabs', 'TranslateYabs'}
ENHANCED = dict(
    Color=ImageEnhance.Color,
    Contrast=ImageEnhance.Contrast,
    Brightness=ImageEnhance.Brightness,
    Sharpness=ImageEnhance.Sharpness,
)
#: Smooth, with all values: what is done to it can be seen.
GRADIENT = np.stack([np.add.outer(np.arange(32) * 5, np.arange(32) * 3)] * 3, -1).astype(np.uint8)
GRADIENT[..., 1] = GRADIENT[::-1, :, 0]


def operation(name, level):
    cfg = dict(type='mmdmt.PillowTransform', operation=name, magnitude_level=level)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return TRANSFORMS.build(cfg)


def applied(name, level, image=GRADIENT):
    """An RGB image after an operation; transforms get BGR."""
    return operation(name, level)(dict(img=image[..., ::-1].copy()))['img'][..., ::-1]


def expected(name, level, image=GRADIENT):
    """The same by Pillow itself, where nothing is random."""
    value, picture = level / 10 * np.ptp(RANGES[name]) + RANGES[name][0], Image.fromarray(image)
    if name in ENHANCED:
        return ENHANCED[name](picture).enhance(value)
    if name == 'SolarizeAdd':
        brighter = np.clip(image.astype(int) + int(value), 0, 255).astype(np.uint8)
        return ImageOps.solarize(Image.fromarray(brighter), 128)
    return dict(
        AutoContrast=lambda: ImageOps.autocontrast(picture),
        Equalize=lambda: ImageOps.equalize(picture),
        Invert=lambda: ImageOps.invert(picture),
        Posterize=lambda: ImageOps.posterize(picture, max(1, int(value))),
        Solarize=lambda: ImageOps.solarize(picture, value),
    )[name]()


def test_the_released_list_has_16_operations_by_name():
    augment = build('released')
    assert [transform.operation for transform in augment.transforms] == list(RANGES)
    with pytest.raises(ValueError, match=r"policies.*'relased'"):
        build('relased')
    with pytest.raises(ValueError, match=r"operation.*'Blur'"):
        operation('Blur', 1)


@pytest.mark.parametrize('name', RANGES)
def test_values_rise_linearly_with_the_magnitude(name):
    low, high = RANGES[name]
    for level in (1, 4, 10):
        transform = operation(name, level)
        assert transform.random_magnitude() == pytest.approx(level / 10 * (high - low) + low)
    signs = {np.sign(transform.random_negative(1.0)) for _ in range(50)}
    assert signs == ({1, -1} if name in EITHER_WAY else {1})


@pytest.mark.parametrize('name', sorted(set(RANGES) - EITHER_WAY - {'CutoutAbs'}))
@pytest.mark.parametrize('level', [1, 4, 7, 10])
def test_operations_are_those_of_pillow(name, level):
    assert (applied(name, level) == np.asarray(expected(name, level))).all()


def test_images_move_in_pixels_on_black():
    seen = {'TranslateXabs': set(), 'TranslateYabs': set()}
    for name in seen:
        for seed in range(8):
            np.random.seed(seed)
            moved = applied(name, 1)  # by 10 pixels
            moved = moved if name == 'TranslateXabs' else moved.transpose(1, 0, 2)
            image = GRADIENT if name == 'TranslateXabs' else GRADIENT.transpose(1, 0, 2)
            left = (moved[:, :-10] == image[:, 10:]).all() and not moved[:, -10:].any()
            right = (moved[:, 10:] == image[:, :-10]).all() and not moved[:, :10].any()
            assert left or right
            seen[name].add('left' if left else 'right')
        assert seen[name] == {'left', 'right'}
        assert not applied(name, 4).any()  # 40 pixels: nothing is left


@pytest.mark.parametrize('name', ['Rotate', 'ShearX', 'ShearY'])
def test_what_comes_from_outside_is_black(name):
    white = np.full_like(GRADIENT, 255)
    shares = [(applied(name, level, white) == 0).mean() for level in (1, 5, 10)]
    assert shares[0] < shares[1] < shares[2] and set(np.unique(applied(name, 10, white))) == {
        0,
        255,
    }


def test_cutout_is_a_black_square_of_up_to_40_pixels():
    white = np.full((64, 64, 3), 255, np.uint8)
    for level, side in ((1, 4), (5, 20), (10, 40)):
        areas = []
        for seed in range(60):
            np.random.seed(seed)
            rows, columns = np.nonzero(applied('CutoutAbs', level, white)[..., 0] == 0)
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            areas.append(len(rows))
        assert max(areas) == side**2  # where it fits


@pytest.mark.parametrize('name', ['Posterize', 'Solarize'])
def test_two_operations_get_weaker_with_the_magnitude(name):
    change = [
        np.abs(applied(name, level).astype(int) - GRADIENT).mean() for level in (1, 3, 5, 8, 10)
    ]
    assert all(np.diff(change) <= 0) and change[-1] < change[0] / 2


def test_the_released_list_changes_images_far_more_than_that_of_the_paper():
    changes = {}
    for policies, settings in (('released', {}), ('paper', dict(cutout=16))):
        augment = build(policies, **settings)
        np.random.seed(0)
        images = [augment(dict(img=GRADIENT.copy()))['img'] for _ in range(600)]
        changes[policies] = np.mean([np.abs(image.astype(int) - GRADIENT) for image in images])
        black = np.mean([not image.any() for image in images])
        # 2 of 16 operations translate, by more than 32 pixels at 7 of 10 magnitudes.
        assert black == (pytest.approx(0.09, abs=0.03) if policies == 'released' else 0)
    assert changes['released'] > 1.5 * changes['paper']


def test_every_released_operation_is_drawn_and_has_a_magnitude():
    augment = build('released')
    np.random.seed(0)
    drawn = Counter(augment.random_policy_indices()[0] for _ in range(1600))
    assert set(drawn) == set(range(16)) and min(drawn.values()) > 50
    assert set(PILLOW_OPERATIONS) == set(RANGES)
