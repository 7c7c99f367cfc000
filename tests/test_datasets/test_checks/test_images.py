"""Images of every kind: refused, or loaded by the shipped pipelines as what they show."""

import os
import shutil

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image
from shipped_configs import load
from tiny_data_tree import LABELED, NUM_CLASSES, DataTree

from mmdmt.datasets.checks import classes, file_facts
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.registry import TRANSFORMS

RGB = np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)
GRAY = RGB[..., 0]
ALPHA = RGB[..., 1:2]
OPTIONS = dict(jpg=dict(quality=100, subsampling=0), webp=dict(lossless=True, exact=True))


def palette():
    return Image.fromarray(RGB).quantize(256)


#: Suffix, what is saved, and what a pipeline has to make of it: (H, W, 3) RGB.
LOADED = {
    'rgb': ('png', RGB, RGB),
    'rgb jpeg': ('jpg', RGB, RGB),
    'rgb bmp': ('bmp', RGB, RGB),
    'rgb tiff': ('tif', RGB, RGB),
    'rgb webp': ('webp', RGB, RGB),
    'gray': ('png', GRAY, GRAY[..., None].repeat(3, 2)),
    'gray tiff': ('tif', GRAY, GRAY[..., None].repeat(3, 2)),
    'one bit': ('png', GRAY > 127, ((GRAY > 127)[..., None] * 255).repeat(3, 2)),
    'alpha is dropped': ('png', np.dstack([RGB, ALPHA]), RGB),
    'alpha of webp': ('webp', np.dstack([RGB, ALPHA]), RGB),
    'palette': ('png', palette(), np.array(palette().convert('RGB'))),
    'palette gif': ('gif', palette(), np.array(palette().convert('RGB'))),
}
REFUSED = {
    '16-bit gray': ('png', GRAY.astype(np.uint16) * 257, 'I;16'),
    '16-bit gray tiff': ('tif', GRAY.astype(np.uint16) * 257, 'I;16'),
    '32-bit gray': ('tif', GRAY.astype(np.int32), 'I'),
    'float in [0, 1]': ('tif', GRAY.astype(np.float32) / 255, 'F'),
    'cmyk': ('jpg', Image.fromarray(RGB).convert('CMYK'), 'CMYK'),
    'cmyk tiff': ('tif', Image.fromarray(RGB).convert('CMYK'), 'CMYK'),
    'lab': ('tif', Image.fromarray(RGB).convert('LAB'), 'LAB'),
    'gray with alpha': ('png', np.dstack([GRAY, ALPHA]), 'LA'),
    'fourth channel of a tiff': ('tif', np.dstack([RGB, ALPHA]), 'RGBA'),
}


@pytest.fixture
def tree(tmp_path):
    init_default_scope('mmseg')
    return DataTree(tmp_path)


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(classes, 'print_log', lambda text, *_: lines.append(text))
    return lines


def save(tree, suffix, content):
    path = tree.root / 'img' / f'a.{suffix}'
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, **OPTIONS.get(suffix, {}))
    return path


def check(tree, suffix='jpg', full=True, names=('a',), **settings):
    tree.write_list('labeled', names)
    config = tree.config('labeled', img_suffix=f'.{suffix}', **settings)
    return check_dataset(config, full=full, progress=False)


def kinds(problems):
    return [problem.kind for problem in problems]


@pytest.mark.parametrize('full', [True, False])
@pytest.mark.parametrize('name', LOADED)
def test_what_passes_is_loaded_as_it_is(tree, name, full):
    suffix, content, expected = LOADED[name]
    path = save(tree, suffix, content)
    assert check(tree, suffix, full) == []
    dataset = load('supervised/deeplabv3plus_mobilenetv2_folder-512x512').train_dataloader.dataset
    loader = TRANSFORMS.build(dataset.datasets[0].pipeline[0])
    found = loader(dict(img_path=str(path)))['img'][..., ::-1]
    tolerance = 4 if suffix == 'jpg' else 0
    assert np.abs(found.astype(int) - expected).mean() <= tolerance
    assert found.shape == expected.shape


@pytest.mark.parametrize('full', [True, False])
@pytest.mark.parametrize('name', REFUSED)
def test_what_would_be_clipped_or_guessed_is_refused(tree, name, full):
    suffix, content, mode = REFUSED[name]
    path = save(tree, suffix, content)
    (problem,) = check(tree, suffix, full)
    assert (problem.kind, problem.line) == ('image mode', 1)
    assert f'{path}: mode {mode} ' in problem.found
    assert 'PNG24:' in problem.fix


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_colors_are_refused_though_pillow_calls_them_rgb(tree, suffix):
    path = tree.root / 'img' / f'a.{suffix}'
    cv2.imwrite(str(path), RGB[..., ::-1].astype(np.uint16) * 257)
    (problem,) = check(tree, suffix)
    assert (problem.kind, 'mode RGB;16 ' in problem.found) == ('image mode', True)


@pytest.mark.parametrize(
    'load', [dict(color_type='unchanged'), dict(imdecode_backend='tifffile'), None]
)
def test_images_for_a_loader_of_their_own_are_not_judged(tree, load):
    save(tree, 'tif', GRAY.astype(np.float32))
    step = dict(type='LoadImageFromFile', **load) if load else dict(type='LoadImageFromNDArray')
    step = step if load else dict(type='LoadBiomedicalImageFromFile')
    assert check(tree, 'tif', pipeline=[step]) == []


def test_judged_images_stay_judged_when_the_check_is_cached(tree):
    save(tree, 'png', GRAY.astype(np.uint16) * 257)
    tree.write_list('labeled', ['a'])
    config = tree.config('labeled', img_suffix='.png')
    own = dict(config, pipeline=[dict(type='LoadImageFromFile', color_type='unchanged')])
    cache = tree.root / 'cache.json'
    assert check_dataset(own, progress=False, cache_file=cache) == []
    assert kinds(check_dataset(config, progress=False, cache_file=cache)) == ['image mode']


@pytest.mark.parametrize('orientation', range(1, 9))
def test_sizes_compare_as_the_loader_turns_images(tree, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    tree.write_image('a', RGB, exif=exif)
    for flag in ('color', 'color_ignore_orientation'):
        shape = mmcv.imread(str(tree.image('a')), flag, backend='pillow').shape[:2]
        pipeline = [dict(type='LoadImageFromFile', color_type=flag, imdecode_backend='pillow')]
        tree.write_mask('a', np.zeros(shape, np.uint8))
        assert check(tree, pipeline=pipeline) == []
        tree.write_mask('a', np.zeros(shape[::-1], np.uint8))
        assert kinds(check(tree, pipeline=pipeline)) == ['mask size']


@pytest.mark.parametrize(
    ('size', 'sound'),
    [((1, 1), False), ((1, 2000), False), ((2000, 1), False), ((4, 2000), False), ((2, 2), True)],
)
def test_images_that_no_pipeline_can_resize_are_refused(tree, size, sound):
    tree.write_image('a', np.zeros((*size, 3), np.uint8))
    tree.write_mask('a', np.zeros(size, np.uint8))
    assert kinds(check(tree)) == ([] if sound else ['image size'])


# --- Masks


@pytest.mark.parametrize(
    'mask',
    [
        Image.fromarray(GRAY % NUM_CLASSES),
        Image.fromarray(GRAY > 127),
        Image.fromarray((GRAY % NUM_CLASSES).astype(np.uint16)),
        Image.fromarray((GRAY % NUM_CLASSES).astype(np.int32)),
    ],
    ids=['8 bits', 'one bit', '16 bits', '32 bits'],
)
def test_ids_of_a_mask_are_those_of_the_loader(tree, mask):
    path = tree.root / 'mask.tif'
    mask.save(path)
    info = dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[])
    loaded = TRANSFORMS.build(dict(type='LoadAnnotations'))(info)['gt_seg_map']
    assert list(file_facts.mask_facts(path).ids) == np.unique(loaded).tolist()


@pytest.mark.parametrize('rules', [{}, dict(label_map={257: 0})])
@pytest.mark.parametrize('num_classes', [None, 2])
def test_ids_that_the_loader_would_wrap_are_illegal(num_classes, rules):
    assert file_facts.LabelRules(num_classes, **rules).illegal([0, 1, 257, -1]) == [257, -1]


def test_masks_and_classes_without_a_labeled_pixel_are_named(tree, log):
    for name in LABELED:
        tree.write_mask(name, np.zeros((40, 48), np.uint8))
    tree.write_mask('a', np.full((40, 48), 255, np.uint8))
    assert check(tree, names=LABELED) == []
    nothing, classes = log
    assert '1 masks have no labeled pixel' in nothing
    assert str(tree.mask('a')) in nothing
    assert 'no labeled pixel of class 1, class 2' in classes
    log.clear()
    tree.write_mask('b', np.arange(40 * 48, dtype=np.uint8).reshape(40, 48) % NUM_CLASSES)
    check(tree, names=['b', 'sub/c'])
    assert log == []


# --- Copies


@pytest.mark.parametrize('make', [os.symlink, os.link, shutil.copy])
def test_a_validation_image_by_another_name_is_noticed(tree, make):
    make(tree.image('v'), tree.image('copy'))
    shutil.copy(tree.mask('v'), tree.mask('copy'))
    tree.write_list('labeled', [*LABELED, 'copy'])
    problems = check_dataset(tree.train_config(), tree.config('val'), progress=False)
    (problem,) = problems
    assert (problem.kind, problem.line) == ('validation overlap', len(LABELED) + 1)
    assert f'{tree.image("copy")} has the content' in problem.found
    assert str(tree.image('v')) in problem.found


def test_whole_files_are_read_only_where_sizes_and_beginnings_are_alike(tmp_path, monkeypatch):
    read = []
    digest = file_facts._digest
    monkeypatch.setattr(file_facts, '_digest', lambda path: read.append(path) or digest(path))
    contents = dict(
        longer=b'x' * 30001, other=b'y' * 30000, end=b'x' * 29999 + b'z', same=b'x' * 30000
    )
    (tmp_path / 'val').write_bytes(b'x' * 30000)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in (*contents, 'missing')]
    val = str(tmp_path / 'val')
    assert file_facts.find_copies(files, [val]) == {str(tmp_path / 'same'): val}
    assert sorted(read) == sorted(str(tmp_path / name) for name in ('end', 'same', 'val'))
