"""What is found in a folder of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdmt.datasets import FolderDataset
from mmdmt.datasets.folders import Layout, cases_of, find_images, layout_of, read_folder


def make(root, *files):
    for file in files:
        path = Path(root) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, format='PNG')
    return str(root)


LAYOUTS = {
    'masks beside images': (
        ['images/a.jpg', 'images/b.jpg', 'images/c.jpg', 'masks/a.png', 'masks/b.png'],
        ('images', 'masks', '.jpg', '.png'),
        ['a', 'b'],
        ['images/c.jpg'],
        None,
    ),
    'other names of the folders': (
        ['Img/a.png', 'Img/sub/b.png', 'Ann/a.png', 'Ann/sub/b.png'],
        ('Img', 'Ann', '.png', '.png'),
        ['a', 'sub/b'],
        [],
        None,
    ),
    'parts inside': (
        ['images/train/a.jpg', 'images/train/c.jpg', 'images/val/b.jpg', 'images/test/d.jpg',
         'masks/train/a.png', 'masks/val/b.png'],
        ('images', 'masks', '.jpg', '.png'),
        ['train/a'],
        ['images/train/c.jpg'],
        {'images/val/b.jpg': 'masks/val/b.png'},
    ),
    'parts outside': (
        ['train/images/a.jpg', 'valid/images/a.jpg', 'train/labels/a.png', 'valid/labels/a.png'],
        ('train/images', 'train/labels', '.jpg', '.png'),
        ['a'],
        [],
        {'valid/images/a.jpg': 'valid/labels/a.png'},
    ),
    'ends of names': (
        ['a.jpg', 'a_mask.png', 'b.jpg', 'b_mask.png', 'c.jpg'],
        ('', '', '.jpg', '_mask.png'),
        ['a', 'b'],
        ['c.jpg'],
        None,
    ),
    'ends of names in folders': (
        ['images/a.jpg', 'images/b.jpg', 'GT/a_gt.png'],
        ('images', 'GT', '.jpg', '_gt.png'),
        ['a'],
        ['images/b.jpg'],
        None,
    ),
    'unlabeled images elsewhere': (
        ['images/a.jpg', 'masks/a.png', 'unlabeled/x.jpg', 'unlabeled/y/z.jpg'],
        ('images', 'masks', '.jpg', '.png'),
        ['a'],
        ['unlabeled/x.jpg', 'unlabeled/y/z.jpg'],
        None,
    ),
}  # fmt: skip

MIXED = {
    'several suffixes': {
        'images/a.jpg': 'masks/a.png',
        'images/b b.PNG': 'masks/b b.png',
        'images/c.JPG': 'masks/c_mask.tif',
    },
    'a folder for each case': {
        'case_1/images/x.png': 'case_1/masks/x.png',
        'case_2/images/x.png': 'case_2/masks/x.png',
    },
    'image and mask of each case': {
        'case_1/img.png': 'case_1/mask.png',
        'case_2/photo of 2.jpg': 'case_2/mask.png',
        'case_3/image_1.jpg': 'case_3/mask_1.png',
    },
    'cases with words': {'p/scan_image.png': 'p/scan_label.png', 'q/img-1.png': 'q/1-gt.png'},
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_images_and_masks_that_are_named_alike_are_paired(layout, tmp_path):
    files, expected, names, unlabeled, val = LAYOUTS[layout]
    found = read_folder(make(tmp_path, *files))
    assert layout_of(found.labeled) == Layout(*expected)
    assert layout_of(found.labeled).names(found.labeled) == names
    assert found.unlabeled == unlabeled and found.val == (val or {})
    assert all((tmp_path / mask).is_file() for mask in found.pairs().values())


@pytest.mark.parametrize('layout', MIXED)
def test_images_and_masks_of_several_suffixes_and_folders_are_paired(layout, tmp_path):
    pairs = MIXED[layout]
    folder = make(tmp_path, *pairs, *pairs.values(), 'extra/z.webp')
    for name in ('Thumbs.db', 'read me.txt'):
        (tmp_path / Path(next(iter(pairs.values()))).parent / name).write_text('no image')
    found = read_folder(folder)
    assert found.labeled == pairs and found.unlabeled == ['extra/z.webp']
    assert layout_of(pairs) is None
    dataset = FolderDataset(data_prefix=dict(img_path=folder), pipeline=[])
    rows = {dataset[i]['img_path']: dataset[i]['seg_map_path'] for i in range(len(dataset))}
    assert rows == {f'{folder}/{image}': f'{folder}/{mask}' for image, mask in pairs.items()}


def test_the_dataset_takes_what_its_list_names(tmp_path):
    pairs = MIXED['several suffixes']
    folder = make(tmp_path / 'data', *pairs, *pairs.values(), 'images/bare.jpg')
    for lines, message in ((['images/b b.PNG'], ''), (['images/bare.jpg'], 'lists 1 of 1 .*bare')):
        (tmp_path / 'list.txt').write_text('\n'.join(lines))
        settings = dict(ann_file=str(tmp_path / 'list.txt'), pipeline=[])
        if message:
            with pytest.raises(ValueError, match=message):
                FolderDataset(data_prefix=dict(img_path=folder), **settings)
        else:
            (only,) = FolderDataset(data_prefix=dict(img_path=folder), **settings)
            assert only['seg_map_path'].endswith('masks/b b.png')


def test_cases_are_the_first_folders_that_are_many(tmp_path):
    few = [
        f'site_{site}/images/case_{case}/{i}.png' for site in 'ab' for case in 'pqr' for i in '01'
    ]
    assert cases_of(few)[few[0]] == 'site_a/case_p'
    many = [f'case_{case}/{scan}/masks/x.png' for case in range(5) for scan in 'ab']
    assert cases_of(many)[many[0]] == 'case_0'
    flat = ['images/train/a.png', 'images/train/b.png']
    assert cases_of(flat) == {image: image for image in flat}
    assert cases_of(['all/a.png', 'all/b.png']) == {
        'all/a.png': 'all/a.png',
        'all/b.png': 'all/b.png',
    }


def test_what_is_left_out_is_said(tmp_path):
    found = read_folder(
        make(tmp_path, 'images/a.jpg', 'masks/a.png', 'images/test/c.jpg', 'images/val/d.jpg')
    )
    assert found.unlabeled == [] and found.val == {}
    assert [note.split(':')[0] for note in found.notes] == [
        '1 images of the test part are left alone',
        '1 validation images have no mask',
    ]


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        (['images/a.jpg'], r'no training image with a mask \(1 images, 0 masks\)'),
        (['images/a.jpg', 'masks/b.png'], r'1 of 1 masks have no image .*masks/b\.png'),
        (['images/a.jpg', 'images/a.png', 'masks/a.png'], 'which belong together.*a.png'),
        (['images/a.jpg', 'masks/a.png', 'masks/a.tif'], 'which belong together.*a.tif'),
        (['p/a.jpg', 'p/b.jpg', 'p/masks/mask.png'], 'which belong together.*b.jpg.*mask.png'),
    ],
)
def test_what_cannot_be_paired_is_refused(files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_folder(make(tmp_path, *files))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no_such is no folder'):
        read_folder(str(tmp_path / 'no_such'))


def test_hidden_files_are_no_images(tmp_path):
    make(tmp_path, 'a.JPG', '.b.png', '.cache/c.png', 'd/e.tif')
    assert find_images(tmp_path) == ['a.JPG', 'd/e.tif']
