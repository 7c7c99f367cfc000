import sys

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose, RandomFlip, Resize
from mmengine.registry import init_default_scope
from mmseg.datasets.transforms import RandomCrop
from PIL import Image
from tiny_bands import write_geotiff
from tiny_data_tree import DataTree

from mmdmt.datasets import (
    LoadBands,
    LoadMasks,
    PackSemiInputs,
    PadBands,
    PadToCrop,
    StrongPseudoAugment,
)
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.datasets.rasters import raster_info, read_raster
from mmdmt.models.data_preprocessor import SemiDataPreprocessor
from mmdmt.models.forward import is_padded, not_padded


def pixels(bands=4, dtype=np.uint16, size=(20, 30)):
    high = np.iinfo(dtype).max if np.dtype(dtype).kind in 'iu' else 1
    values = np.random.default_rng(0).random((*size, bands)) * high
    return values.astype(dtype)


def load(path, **settings):
    return LoadBands(**settings)(dict(img_path=str(path)))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_tiff_and_npy_keep_bands_and_depth(tmp_path, dtype):
    image = pixels(5, dtype)
    write_geotiff(tmp_path / 'a.tif', image)
    np.save(tmp_path / 'a.npy', image)
    for path in (tmp_path / 'a.tif', tmp_path / 'a.npy'):
        assert np.array_equal(read_raster(str(path)), image)
        assert raster_info(str(path))[:4] == (20, 30, 5, np.dtype(dtype))
        found = load(path, bands=[4, 0])
        assert found['img'].dtype == (np.uint8 if dtype == np.uint8 else np.float32)
        assert np.array_equal(found['img'], image[..., [4, 0]].astype(found['img'].dtype))
        assert found['img_shape'] == found['ori_shape'] == (20, 30)


def test_16_bit_png_gray_npy_and_color_order(tmp_path):
    image = pixels(3)
    cv2.imwrite(str(tmp_path / 'deep.png'), image[..., ::-1])
    assert np.array_equal(load(tmp_path / 'deep.png')['img'], image.astype(np.float32))
    color = pixels(4, np.uint8)
    Image.fromarray(color).save(tmp_path / 'color.png')
    assert np.array_equal(load(tmp_path / 'color.png')['img'], color)
    np.save(tmp_path / 'gray.npy', image[..., 0])
    assert load(tmp_path / 'gray.npy')['img'].shape == (20, 30, 1)


def test_nodata_and_nan_are_filled(tmp_path):
    image = pixels(2, np.float32)
    image[:3, :, 0], image[5, 5] = -9999, np.nan
    path = write_geotiff(tmp_path / 'a.tif', image, nodata=-9999)
    expected = np.where(np.isnan(image) | (image == -9999), 0.5, image)
    assert np.array_equal(load(path, fill=0.5)['img'], expected.astype(np.float32))
    np.save(tmp_path / 'a.npy', image)
    assert np.array_equal(load(tmp_path / 'a.npy', nodata=-9999, fill=0.5)['img'], expected)


FILL = 7.0


def measured_sample(tmp_path, labeled):
    """An image through resizing, cropping and flipping; FILL where nothing was measured."""
    image = pixels(3, np.float32)
    image[::3], image[:, ::2, 0] = -1, -1  # of the second pixels other bands were
    path = write_geotiff(tmp_path / 'a.tif', image, nodata=-1)
    write_geotiff(tmp_path / 'm.tif', np.ones((20, 30), np.uint8))
    info = dict(img_path=str(path), seg_fields=[], reduce_zero_label=False)
    info.update(dict(seg_map_path=str(tmp_path / 'm.tif')) if labeled else {})
    steps = [
        LoadBands(fill=FILL),
        *([LoadMasks()] if labeled else []),
        dict(type='Resize', scale=(60, 40), interpolation='nearest'),
        RandomCrop((24, 32)),
        dict(type='RandomFlip', prob=1.0),
        PackSemiInputs(),
    ]
    packed = Compose(steps)(info)
    return packed['inputs'], packed['data_samples']


def test_what_was_not_measured_is_not_learned(tmp_path):
    init_default_scope('mmseg')
    np.random.seed(1)
    samples = [measured_sample(tmp_path, labeled) for labeled in (True, False, False)]
    missing = [(image == FILL).all(dim=0) for image, _ in samples]
    assert all(0.1 < mask.float().mean() < 0.9 for mask in missing)
    label = samples[0][1].gt_sem_seg.data[0]
    assert torch.equal(label == 255, missing[0]) and (label[~missing[0]] == 1).all()
    preprocessor = SemiDataPreprocessor(size=(32, 40), mean=[0.0] * 3, std=[1.0] * 3)
    inputs, data_samples = map(list, zip(*samples))
    out = preprocessor(dict(inputs=inputs, data_samples=data_samples), True)
    valid = out['inputs']['unsup_valid']
    for row, mask in zip(valid, missing[1:]):
        assert torch.equal(row[:24, :32], ~mask)
        assert not row[24:].any() and not row[:, 32:].any()
    own = not_padded(out['data_samples']['sup'], out['inputs']['sup'])
    assert torch.equal(own[0, :24, :32], ~missing[0]) and is_padded(out['data_samples']['unsup'])


def test_labels_of_validation_are_ignored_where_nothing_was_measured(tmp_path):
    image = pixels(3, np.float32)
    image[:10] = -1
    path = write_geotiff(tmp_path / 'a.tif', image, nodata=-1)
    write_geotiff(tmp_path / 'm.tif', np.ones((20, 30), np.uint8))
    results = dict(img_path=str(path), seg_fields=[], reduce_zero_label=False)
    results['seg_map_path'] = str(tmp_path / 'm.tif')
    label = Compose([LoadBands(), Resize(scale=(15, 10)), LoadMasks()])(results)['gt_seg_map']
    assert label.dtype == np.uint8 and label.shape == (20, 30)
    assert (label[:10] == 255).all() and (label[10:] == 1).all()


@pytest.mark.parametrize('suffix', ['.tif', '.npy'])
def test_windows_of_image_and_mask_fit(tmp_path, suffix):
    image = pixels(4, size=(60, 80))
    mask = (image[..., 0] % 2).astype(np.uint8)
    for name, values in (('image', image), ('mask', mask)):
        if suffix == '.tif':
            write_geotiff(tmp_path / f'{name}.tif', values)
        else:
            np.save(tmp_path / f'{name}.npy', values)
    step = Compose([LoadBands(window=(16, 24)), LoadMasks(mask_values=[0, 1])])
    info = dict(
        img_path=str(tmp_path / f'image{suffix}'),
        seg_map_path=str(tmp_path / f'mask{suffix}'),
        seg_fields=[],
        reduce_zero_label=False,
    )
    places = set()
    for _ in range(8):
        found = step(dict(info, seg_fields=[]))
        assert found['img'].shape == (16, 24, 4)
        top, left, *_ = found['window']
        assert np.array_equal(found['img'], image[top : top + 16, left : left + 24])
        assert np.array_equal(found['gt_seg_map'], found['img'][..., 0] % 2)
        places.add((top, left))
    assert len(places) > 3
    small = load(tmp_path / f'image{suffix}', window=(999, 999))
    assert small['img'].shape == image.shape


def test_a_window_of_a_tiff_leaves_the_rest_on_disk(tmp_path, monkeypatch):
    import rasterio

    path = write_geotiff(tmp_path / 'a.tif', pixels(4, size=(160, 160)))
    read, sizes = rasterio.io.DatasetReader.read, []

    def spied(self, *args, **options):
        out = read(self, *args, **options)
        sizes.append(out.shape)
        return out

    class Reader(rasterio.io.DatasetReader):
        pass

    Reader.read = spied
    opened = rasterio.open
    monkeypatch.setattr(rasterio, 'open', lambda name, *args: Reader(name) if not args else opened)
    load(path, window=(16, 16), bands=[1, 3])
    assert sizes == [(2, 16, 16)]


def test_tifffile_stands_in_for_rasterio(tmp_path, monkeypatch):
    image = pixels(4)
    path = write_geotiff(tmp_path / 'a.tif', image)
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    if 'tifffile' not in sys.modules:
        fake = type(sys)('tifffile')
        fake.imread = lambda _: np.moveaxis(image, -1, 0)
        monkeypatch.setitem(sys.modules, 'tifffile', fake)
    assert np.array_equal(read_raster(str(path), [2]), image[..., [2]])
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    with pytest.raises(ImportError, match='pip install rasterio'):
        read_raster(str(path))


def test_bad_settings_and_files(tmp_path):
    path = write_geotiff(tmp_path / 'a.tif', pixels(4))
    with pytest.raises(ValueError, match=r'a\.tif has 4 bands, counted from 0, not \[4\]'):
        load(path, bands=[0, 4])
    with pytest.raises(ValueError, match='bands'):
        LoadBands(bands=[])
    with pytest.raises(ValueError, match='window'):
        LoadBands(window=(0, 5))
    (tmp_path / 'b.png').write_bytes(b'nothing')
    with pytest.raises(OSError, match=r'b\.png cannot be read'):
        load(tmp_path / 'b.png')
    np.save(tmp_path / 'c.npy', np.zeros((2, 3, 4, 5)))
    with pytest.raises(OSError, match=r'\(2, 3, 4, 5\)'):
        load(tmp_path / 'c.npy')


@pytest.mark.parametrize('bands', [1, 2, 4, 5, 13])
def test_geometry_and_packing_of_any_number_of_bands(tmp_path, bands):
    np.save(tmp_path / 'a.npy', pixels(bands, np.uint16))
    steps = [
        LoadBands(),
        Resize(scale=(60, 40), keep_ratio=False),
        RandomCrop(crop_size=(24, 32)),
        RandomFlip(prob=1.0),
        PadToCrop(size=(48, 48)),
        PadBands(size=(50, 50), pad_val=7),
        PackSemiInputs(),
    ]
    packed = Compose(steps)(dict(img_path=str(tmp_path / 'a.npy'), seg_fields=[]))
    assert packed['inputs'].shape == (bands, 50, 50)
    assert packed['inputs'].dtype == torch.float32
    assert packed['inputs'].max() > 255
    assert not packed['inputs'][:, 24:48, :48].any()
    assert (packed['inputs'][:, 48:] == 7).all()


def test_strong_pseudo_augmentation_keeps_the_range(tmp_path):
    image = pixels(4).astype(np.float32)
    step = StrongPseudoAugment(
        strong=dict(type='mmdmt.StrongAugment', jitter_prob=0.0, blur_prob=0.0),
        cutout=dict(prob=0.0),
        value_range=(0, 65535),
    )
    found = step(dict(img=image.copy()))['img']
    np.testing.assert_allclose(found, image, atol=0.05)
    step.cutout['prob'] = 1.0
    found = step(dict(img=image.copy()))['img']
    assert found.dtype == np.float32
    assert (np.abs(found - image) > 1).any()
    assert found.min() >= 0
    assert found.max() <= 65535


def test_the_data_check_reads_bands(tmp_path):
    tree = DataTree(tmp_path)
    for name in ('a', 'b', 'sub/c', 'd', 'e'):
        write_geotiff(tree.image(name).with_suffix('.tif'), pixels(4, size=(40, 48)))

    def check(**load):
        pipeline = [dict(type='mmdmt.LoadBands', **load)]
        parts = [
            tree.config(kind, img_suffix='.tif', pipeline=pipeline)
            for kind in ('labeled', 'unlabeled')
        ]
        return check_dataset(parts, progress=False)

    assert check() == []
    found = check(bands=[0, 5])
    assert {problem.kind for problem in found} == {'image mode'}
    assert 'it has 4 bands of uint16, not [5]' in found[0].found
    tree.image('a').with_suffix('.tif').write_bytes(b'II*\0nothing')
    assert [problem.kind for problem in check()] == ['corrupt image']
