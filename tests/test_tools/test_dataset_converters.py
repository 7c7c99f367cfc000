"""Each converter on a tiny tree of the layout of the original dataset."""

import importlib.util
import json
import sys
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mmdmt.datasets.conversion import ConversionError, Job, convert_all, save_png

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / 'tests/data/golden/coco_masks.json').read_text())


def load(name):
    path = ROOT / 'tools/dataset_converters' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'converter_{name}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where worker processes look for its functions
    spec.loader.exec_module(module)
    return module


voc_aug, cityscapes, camvid, coco81 = map(load, ['voc_aug', 'cityscapes', 'camvid', 'coco81'])
gta5, synthia, kvasir_seg = map(load, ['gta5', 'synthia', 'kvasir_seg'])


def write(path, pixels, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if palette:
        image = image.convert('P') if image.mode != 'L' else image
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def ones(value, size=(4, 6)):
    return np.full(size, value, dtype=np.uint8)


# ---------------------------------------------------------------- shared parts


def broken():
    raise OSError('no such thing')


@pytest.mark.parametrize('workers', [1, 2])
def test_conversion_writes_only_what_is_not_there(tmp_path, workers):
    jobs = [Job(tmp_path / f'{n}.png', ones, (n,)) for n in range(5)]
    assert convert_all(jobs[:2], workers) == 2
    save_png(tmp_path / '0.png', ones(99))
    (tmp_path / '.3.png.partial-1').touch()  # of a run that was killed
    assert convert_all(jobs, workers) == 3
    assert [read(job.output)[0, 0] for job in jobs] == [99, 1, 2, 3, 4]
    assert files(tmp_path) == [f'{n}.png' for n in range(5)]
    assert convert_all(jobs, workers, overwrite=True) == 5
    assert read(tmp_path / '0.png')[0, 0] == 0


@pytest.mark.parametrize('workers', [1, 2])
def test_an_error_names_the_file_and_leaves_no_part_of_it(tmp_path, workers):
    jobs = [Job(tmp_path / 'a.png', ones, (1,)), Job(tmp_path / 'b.png', broken, ())]
    with pytest.raises(ConversionError, match=r'b\.png cannot be made: OSError: no such thing'):
        convert_all(jobs, workers)
    assert 'b.png' not in files(tmp_path)


def test_pixels_that_would_be_cut_off_are_refused(tmp_path):
    with pytest.raises(ConversionError, match=r'a\.png.*int64'):
        save_png(tmp_path / 'a.png', np.zeros((2, 2), dtype=np.int64))


# ---------------------------------------------------------------- VOC and SBD


@pytest.fixture
def voc(tmp_path):
    root, sbd = tmp_path / 'VOC2012', tmp_path / 'sbd'
    lists = root / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('2007_b\n2007_a\n')
    (lists / 'val.txt').write_text('2007_v\n2008_x\n')
    for name in ('2007_a', '2007_b', '2007_v'):
        write(root / 'SegmentationClass' / f'{name}.png', [[0, 7, 255]], palette=True)
    (sbd / 'cls').mkdir(parents=True)
    (sbd / 'train.txt').write_text('2008_y\n2007_a\n2008_x\n')
    (sbd / 'val.txt').write_text('2008_z\n')
    for name in ('2007_a', '2008_x', '2008_y', '2008_z'):
        savemat(sbd / 'cls' / f'{name}.mat', {'GTcls': {'Segmentation': ones(20)}})
    return root, sbd


def test_voc_aug_joins_both_without_validation_images(voc, capsys):
    root, sbd = voc
    voc_aug.main([str(root), str(sbd)])
    names = (root / 'ImageSets/Segmentation/trainaug.txt').read_text().split()
    assert names == ['2007_a', '2007_b', '2008_y', '2008_z']
    assert files(root / 'SegmentationClassAug') == [f'{name}.png' for name in names]
    assert read(root / 'SegmentationClassAug/2007_a.png').tolist() == [[0, 7, 255]]
    assert np.array_equal(read(root / 'SegmentationClassAug/2008_y.png'), ones(20))
    assert '4 images' in capsys.readouterr().out


def test_voc_aug_goes_on_where_it_was(voc):
    root, sbd = voc
    write(root / 'SegmentationClassAug/2008_y.png', ones(3))
    voc_aug.main([str(root), str(sbd)])
    assert read(root / 'SegmentationClassAug/2008_y.png')[0, 0] == 3
    voc_aug.main([str(root), str(sbd), '--overwrite'])
    assert read(root / 'SegmentationClassAug/2008_y.png')[0, 0] == 20


def test_voc_aug_names_a_missing_list_and_a_wrong_file(voc):
    root, sbd = voc
    savemat(sbd / 'cls/2008_y.mat', {'GTinst': 1})
    with pytest.raises(SystemExit, match=r'2008_y\.mat has no GTcls'):
        voc_aug.main([str(root), str(sbd)])
    (sbd / 'val.txt').unlink()
    with pytest.raises(SystemExit, match=r'val\.txt does not exist'):
        voc_aug.main([str(root), str(sbd)])
    with pytest.raises(SystemExit, match='annotations of SBD'):
        voc_aug.main([str(root), str(root)])


# ---------------------------------------------------------------- Cityscapes


@pytest.fixture
def city(tmp_path):
    for split, names in (('train', ['ulm/ulm_1', 'aachen/aachen_2', 'aachen/aachen_1']),
                         ('val', ['lindau/lindau_1'])):  # fmt: skip
        for name in names:
            ids = [[7, 33, 0, 255, 11, 14]]
            write(tmp_path / 'gtFine' / split / f'{name}_gtFine_labelIds.png', ids)
            image = tmp_path / 'leftImg8bit' / split / f'{name}_leftImg8bit.png'
            write(image, np.zeros((1, 6, 3)))
    return tmp_path


def test_cityscapes_ids_and_lists(city):
    cityscapes.main([str(city), '--workers', '2'])
    assert (city / 'train.txt').read_text().split() == [
        'aachen/aachen_1',
        'aachen/aachen_2',
        'ulm/ulm_1',
    ]
    assert (city / 'val.txt').read_text() == 'lindau/lindau_1\n'
    mask = read(city / 'gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png')
    assert mask.tolist() == [[0, 18, 255, 255, 2, 255]]


def test_cityscapes_refuses_other_ids_and_missing_images(city):
    path = city / 'gtFine/val/lindau/lindau_1_gtFine_labelIds.png'
    write(path, [[40, 1]])
    with pytest.raises(SystemExit, match=r'lindau_1_gtFine_labelIds\.png has the ids \[40\]'):
        cityscapes.main([str(city)])
    (city / 'leftImg8bit/val/lindau/lindau_1_leftImg8bit.png').unlink()
    with pytest.raises(SystemExit, match='1 annotated images are not in'):
        cityscapes.main([str(city)])


def test_cityscapes_names_what_should_be_there(tmp_path):
    with pytest.raises(SystemExit, match=r'gtFine/train is not a folder; the annotations'):
        cityscapes.main([str(tmp_path)])


# ---------------------------------------------------------------- CamVid

# The names decide about the split; these are its limits as published.
CAMVID_NAMES = {
    'train': ['0001TP_006690', '0001TP_008520', '0006R0_f03930', '0016E5_00390', '0016E5_08190'],
    'val': ['0016E5_07959', '0016E5_08159'],
    'test': ['0001TP_008550', 'Seq05VD_f00000'],
}


@pytest.fixture
def camvid_raw(tmp_path):
    for name in chain.from_iterable(CAMVID_NAMES.values()):
        write(tmp_path / 'raw' / f'{name}.png', np.full((8, 12, 3), 50))
        colors = np.zeros((8, 12, 3))
        colors[:, :6] = (128, 128, 128)  # sky
        colors[:4, 6:] = (64, 192, 0)  # a wall, which is a building
        write(tmp_path / 'labels' / f'{name}_L.png', colors)
    return tmp_path


def camvid_args(root, *more):
    return [str(root / 'raw'), str(root / 'labels'), str(root / 'out'), '--size', '6', '4', *more]


def test_camvid_split_size_and_classes(camvid_raw):
    camvid.main(camvid_args(camvid_raw))
    for split, names in CAMVID_NAMES.items():
        expected = sorted(f'{name}.png' for name in names)
        assert files(camvid_raw / 'out/img' / split) == expected
        assert files(camvid_raw / 'out/ann' / split) == expected
    assert (
        read(camvid_raw / 'out/img/val/0016E5_07959.png').tolist()
        == np.full((4, 6, 3), 50).tolist()
    )
    expected = np.full((4, 6), 255)
    expected[:, :3], expected[:2, 3:] = 0, 1
    assert read(camvid_raw / 'out/ann/val/0016E5_07959.png').tolist() == expected.tolist()


def test_camvid_has_the_32_colors_in_11_classes():
    colors = [color for members in camvid.CLASSES.values() for color in members.values()]
    assert len(set(colors) | {camvid.VOID}) == len(colors) + 1 == 32
    assert len(camvid.CLASSES) == 11


def test_camvid_refuses_what_it_does_not_know(camvid_raw):
    path = camvid_raw / 'labels/0001TP_006690_L.png'
    write(path, np.full((8, 12, 3), 3))
    with pytest.raises(SystemExit, match=r'0001TP_006690_L\.png: 100\.0% of the pixels'):
        camvid.main(camvid_args(camvid_raw))
    path.rename(camvid_raw / 'labels/0002XX_1_L.png')
    (camvid_raw / 'raw/0001TP_006690.png').rename(camvid_raw / 'raw/0002XX_1.png')
    with pytest.raises(SystemExit, match='0002XX_1 is of no sequence'):
        camvid.main(camvid_args(camvid_raw))
    (camvid_raw / 'raw/0002XX_1.png').unlink()
    with pytest.raises(SystemExit, match=r'0002XX_1\.png does not exist'):
        camvid.main(camvid_args(camvid_raw))


# ---------------------------------------------------------------- COCO


def square(left, top, side, category, **kwargs):
    points = [left, top, left + side, top, left + side, top + side, left, top + side]
    return dict(segmentation=[points], category_id=category, **kwargs)


def coco_file(root, annotations, size=(8, 10)):
    images = [
        dict(id=number, file_name=f'{number:03}.jpg', height=size[0], width=size[1])
        for number in (1, 2)
    ]
    content = dict(images=images, annotations=[dict(a, image_id=1) for a in annotations])
    path = root / 'instances.json'
    path.write_text(json.dumps(content))
    return [str(path), str(root / 'masks')]


def test_coco_smaller_objects_are_on_top_and_crowds_below(tmp_path):
    annotations = [
        square(2, 2, 2, category=90),
        square(1, 1, 4, category=1),
        dict(
            segmentation=dict(size=[8, 10], counts=[40, 40]),  # the right half
            category_id=1,
            iscrowd=1,
        ),
        square(4, 0, 3, category=13),
    ]
    coco81.main(coco_file(tmp_path, annotations))
    expected = np.zeros((8, 10), dtype=int)
    expected[:, 5:] = 255
    expected[1:5, 1:5] = 1
    expected[0:3, 4:7] = 12  # category 12 is not used
    expected[2:4, 2:4] = 80
    assert read(tmp_path / 'masks/001.png').tolist() == expected.tolist()
    assert not read(tmp_path / 'masks/002.png').any()


def test_coco_of_equal_objects_the_later_is_on_top():
    first, second = square(0, 0, 3, category=1), square(1, 0, 3, category=2)
    assert coco81.paint(4, 5, [first, second])[0].tolist() == [1, 2, 2, 2, 0]
    assert coco81.paint(4, 5, [second, first])[0].tolist() == [1, 1, 1, 2, 0]


@pytest.mark.parametrize('golden', GOLDEN['runs'], ids=lambda golden: str(golden['size']))
def test_coco_compressed_runs_are_those_of_pycocotools(golden):
    height, width = golden['size']
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(golden['mask']), dtype=np.uint8))
    expected = bits[: height * width].reshape(height, width).astype(bool)
    region = dict(size=[height, width], counts=golden['counts'])
    assert np.array_equal(coco81.region_mask(region, height, width), expected)


@pytest.mark.parametrize('golden', GOLDEN['polygons'], ids=['large', 'small'])
def test_coco_polygons_differ_from_pycocotools_by_pixels_of_the_outline(golden):
    height, width = golden['size']
    region = dict(size=[height, width], counts=golden['counts'])
    expected = coco81.region_mask(region, height, width)
    found = coco81.region_mask([golden['polygon']], height, width)
    outline = np.zeros_like(expected)
    for axis in (0, 1):
        for step in (-1, 1):
            outline |= np.roll(expected, step, axis) != expected
    assert not ((found != expected) & ~outline).any()
    assert abs(int(found.sum()) - int(expected.sum())) <= 0.05 * expected.sum()


def test_coco_polygons_beyond_the_image_are_cut():
    expected = np.zeros((4, 5), dtype=bool)
    expected[:2, :3] = True
    polygon = square(-2, -3, 5, category=1)['segmentation']
    assert np.array_equal(coco81.region_mask(polygon, 4, 5), expected)
    assert not coco81.region_mask(square(9, 9, 2, category=1)['segmentation'], 4, 5).any()


def test_coco_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(SystemExit, match='category 12, which is none of the 80'):
        coco81.main(coco_file(tmp_path, [square(0, 0, 2, category=12)]))
    short = dict(segmentation=dict(size=[8, 10], counts=[3]), category_id=1)
    with pytest.raises(SystemExit, match=r'run lengths sum to 3, not to 8 \* 10'):
        coco81.main(coco_file(tmp_path, [short]))
    (tmp_path / 'instances.json').write_text('{"images": []}')
    with pytest.raises(SystemExit, match='has no `annotations`'):
        coco81.main([str(tmp_path / 'instances.json'), str(tmp_path)])
    with pytest.raises(SystemExit, match=r'none\.json does not exist'):
        coco81.main([str(tmp_path / 'none.json'), str(tmp_path)])


# ---------------------------------------------------------------- GTA5


@pytest.fixture
def gta(tmp_path):
    for name in ('00001', '00002', '00003'):
        write(tmp_path / 'images' / f'{name}.png', np.zeros((2, 3, 3)))
        write(tmp_path / 'labels' / f'{name}.png', [[7, 33, 0], [11, 34, 25]], palette=True)
    write(tmp_path / 'labels' / '00002.png', [[7, 33], [11, 34]], palette=True)
    return tmp_path


def test_gta5_has_the_ids_of_cityscapes_and_leaves_out_pairs_of_two_sizes(gta, capsys):
    gta5.main([str(gta)])
    assert (gta / 'train.txt').read_text() == '00001\n00003\n'
    assert read(gta / 'labels/00003_labelTrainIds.png').tolist() == [[0, 18, 255], [2, 255, 12]]
    assert not (gta / 'labels/00002_labelTrainIds.png').exists()
    assert 'images/00002.png is 3x2, its label 2x2' in capsys.readouterr().out
    gta5.main([str(gta)])  # what it wrote are no labels
    assert (gta / 'train.txt').read_text() == '00001\n00003\n'


def test_gta5_refuses_other_ids_and_missing_images(gta):
    write(gta / 'labels/00001.png', [[7, 77, 0], [7, 7, 7]])
    with pytest.raises(SystemExit, match=r'00001\.png has the ids \[77\]'):
        gta5.main([str(gta)])
    (gta / 'images/00003.png').unlink()
    with pytest.raises(SystemExit, match=r'1 labeled images are not in .*images, first 00003\.png'):
        gta5.main([str(gta)])
    with pytest.raises(SystemExit, match=r'images is not a folder; the images should be there'):
        gta5.main([str(gta / 'images')])


# ---------------------------------------------------------------- SYNTHIA

# By the class table of SYNTHIA-RAND-CITYSCAPES, ids to training ids of Cityscapes.
SYNTHIA_IDS = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13,
    18: 14, 19: 15, 20: 16, 12: 17, 11: 18, 0: 255, 13: 255, 14: 255, 22: 255,
}  # fmt: skip


def write_synthia(root, ids):
    write(root / 'RGB/0000000.png', np.zeros((1, len(ids), 3)))
    label = np.zeros((1, len(ids), 3), np.uint16)  # OpenCV writes the last channel first
    label[..., 2], label[..., 1] = ids, 513  # instances, which have more than 8 bits
    (root / 'GT/LABELS').mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(root / 'GT/LABELS/0000000.png'), label)


def test_synthia_classes_are_those_of_cityscapes(tmp_path):
    write_synthia(tmp_path, list(SYNTHIA_IDS))
    synthia.main([str(tmp_path)])
    found = read(tmp_path / 'GT/LABELS/0000000_labelTrainIds.png')
    assert found.tolist() == [list(SYNTHIA_IDS.values())]
    assert (tmp_path / 'train.txt').read_text() == '0000000\n'


def test_synthia_ids_are_read_with_16_bits(tmp_path):
    write_synthia(tmp_path, [3, 256 + 3])  # the same in the lower 8 bits
    with pytest.raises(SystemExit, match=r'0000000\.png has the ids \[259\]'):
        synthia.main([str(tmp_path)])
    write(tmp_path / 'GT/LABELS/0000000.png', np.zeros((1, 2, 3)))
    with pytest.raises(SystemExit, match=r'0000000\.png is uint8 of shape \(1, 2, 3\)'):
        synthia.main([str(tmp_path)])


# ---------------------------------------------------------------- Kvasir-SEG


@pytest.fixture
def kvasir(tmp_path):
    for number in range(25):
        mask = np.zeros((16, 24, 3))
        mask[:, : 8 + 8 * (number % 2)] = 255
        for folder in ('images', 'masks'):
            path = tmp_path / folder / f'cju{number:02}.jpg'
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(path, quality=40)
    return tmp_path


def test_kvasir_masks_are_0_and_1_and_validation_images_are_drawn(kvasir):
    kvasir_seg.main([str(kvasir)])
    expected = np.zeros((16, 24), int)
    expected[:, :16] = 1
    assert read(kvasir / 'masks_png/cju01.png').tolist() == expected.tolist()
    train, val = ((kvasir / f'{part}.txt').read_text().split() for part in ('train', 'val'))
    assert len(val) == 3 and sorted(train + val) == [f'cju{number:02}' for number in range(25)]
    kvasir_seg.main([str(kvasir)])
    assert (kvasir / 'val.txt').read_text().split() == val


def test_kvasir_takes_the_published_lists(kvasir):
    lists = kvasir / 'published'
    lists.mkdir()
    (lists / 'train.txt').write_text('cju03\ncju01.jpg\n')
    (lists / 'val.txt').write_text('cju07\n')
    arguments = [str(kvasir), '--lists', str(lists)]
    kvasir_seg.main(arguments)
    assert (kvasir / 'train.txt').read_text() == 'cju03\ncju01\n'
    assert (kvasir / 'val.txt').read_text() == 'cju07\n'
    (lists / 'val.txt').write_text('cju03\n')
    with pytest.raises(SystemExit, match=r'cju03 in train\.txt and in val\.txt'):
        kvasir_seg.main(arguments)
    (lists / 'val.txt').write_text('other\n')
    with pytest.raises(SystemExit, match=r'val\.txt lists 1 names without a mask, first other'):
        kvasir_seg.main(arguments)


def test_kvasir_refuses_what_is_no_mask(kvasir):
    write(kvasir / 'masks/cju04.jpg', np.full((16, 24, 3), 120))
    with pytest.raises(SystemExit, match=r'cju04\.jpg: 100% of the pixels are neither'):
        kvasir_seg.main([str(kvasir)])
