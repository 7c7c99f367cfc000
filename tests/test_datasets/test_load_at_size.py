"""Loading at another size: what counts as the original size, and that masks are never blended."""

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from mmdmt.datasets import LoadAnnotationsAtImageSize, LoadImageAtSize, PadToCrop, RandomRescale

HALF = (8, 4)  # width, height


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 16, 3), np.uint8)
    mask = rng.choice(np.array([0, 5, 255], np.uint8), (8, 16))
    Image.fromarray(image).save(tmp_path / 'image.png')
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    info = dict(
        img_path=str(tmp_path / 'image.png'),
        seg_map_path=str(tmp_path / 'mask.png'),
        seg_fields=[],
        reduce_zero_label=False,
    )
    return info, mask


def test_the_reduced_size_counts_as_the_original_one(files):
    found = LoadImageAtSize(HALF)(files[0])
    assert found['img'].shape == (4, 8, 3) and found['img'].dtype == np.uint8
    assert found['img_shape'] == found['ori_shape'] == (4, 8)


def test_masks_follow_by_nearest_neighbor(files):
    info, mask = files
    found = LoadAnnotationsAtImageSize()(LoadImageAtSize(HALF)(info))
    np.testing.assert_array_equal(found['gt_seg_map'], mask[::2, ::2])
    assert found['gt_seg_map'].dtype == np.uint8
    assert found['seg_fields'] == ['gt_seg_map']


def test_an_image_of_that_size_is_not_changed(files):
    plain = Compose([dict(type='LoadImageFromFile')])(dict(files[0]))
    np.testing.assert_array_equal(LoadImageAtSize((16, 8))(files[0])['img'], plain['img'])


@pytest.mark.parametrize('size', [(40, 60), (60, 40), (700, 300)])
def test_an_image_is_scaled_from_its_own_size_with_all_its_maps(size):
    image, label = np.zeros((*size, 3), np.uint8), np.full(size, 3, np.uint8)
    confidence = np.ones(size, np.float32)
    sides = []
    for seed in range(40):
        np.random.seed(seed)
        found = RandomRescale((0.5, 1.5))(
            dict(
                img=image.copy(),
                gt_seg_map=label.copy(),
                pseudo_confidence=confidence.copy(),
                seg_fields=['gt_seg_map', 'pseudo_confidence'],
            )
        )
        height, width = found['img'].shape[:2]
        assert found['gt_seg_map'].shape == found['pseudo_confidence'].shape == (height, width)
        assert height / width == pytest.approx(size[0] / size[1], rel=0.06)
        sides.append(height / size[0])
    assert 0.45 < min(sides) < 0.6 and 1.4 < max(sides) <= 1.5
    assert np.mean(sides) == pytest.approx(1, abs=0.1)


def test_crops_are_padded_before_they_are_flipped():
    height, width = 5, 6
    results = dict(
        img=np.full((height, width, 3), 9, np.uint8),
        gt_seg_map=np.full((height, width), 3, np.uint8),
        pseudo_confidence=np.full((height, width), 0.5, np.float32),
        seg_fields=['gt_seg_map', 'pseudo_confidence'],
    )
    steps = [dict(type='mmdmt.PadToCrop', size=[8, 10]), dict(type='RandomFlip', prob=1.0)]
    found = Compose(steps)(results)
    assert found['img_shape'] == (8, 10) and found['img'].dtype == np.uint8
    expected = np.zeros((8, 10))
    expected[:height, -width:] = 1
    np.testing.assert_array_equal(found['img'][..., 1], 9 * expected)
    np.testing.assert_array_equal(found['pseudo_confidence'], 0.5 * expected)
    np.testing.assert_array_equal(found['gt_seg_map'], np.where(expected, 3, 255))
    image = np.zeros((5, 6, 3), np.uint8)
    assert PadToCrop((8, 10), padding='mean')(dict(img=image))['img'] is image
    assert PadToCrop((4, 7))(dict(img=image))['img'].shape == (5, 7, 3)


def test_wrong_use_is_refused(files):
    with pytest.raises(ValueError, match=r'`scale` must be \(width, height\)'):
        LoadImageAtSize((0, 8))
    with pytest.raises(KeyError, match='load the image first'):
        LoadAnnotationsAtImageSize()(files[0])


def test_they_are_found_by_their_names(files):
    pipeline = Compose(
        [
            dict(type='mmdmt.LoadImageAtSize', scale=HALF, imdecode_backend='pillow'),
            dict(type='mmdmt.LoadAnnotationsAtImageSize'),
        ]
    )
    assert pipeline(files[0])['gt_seg_map'].shape == (4, 8)
    assert 'scale=(8, 4)' in repr(pipeline)
