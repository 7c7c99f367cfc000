"""What is found in a folder of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdmt.datasets.folders import find_images, read_folder


def make(root, *files):
    for file in files:
        path = Path(root) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return str(root)


LAYOUTS = {
    'masks beside images': (
        ['images/a.jpg', 'images/b.jpg', 'images/c.jpg', 'masks/a.png', 'masks/b.png'],
        ('images', 'masks', '.jpg', '.png', ['a', 'b']),
        ['c'],
        None,
    ),
    'other names of the folders': (
        ['Img/a.png', 'Img/sub/b.png', 'Ann/a.png', 'Ann/sub/b.png'],
        ('Img', 'Ann', '.png', '.png', ['a', 'sub/b']),
        None,
        None,
    ),
    'parts inside': (
        ['images/train/a.jpg', 'images/train/c.jpg', 'images/val/b.jpg', 'images/test/d.jpg',
         'masks/train/a.png', 'masks/val/b.png'],
        ('images', 'masks', '.jpg', '.png', ['train/a']),
        ['train/c'],
        ['val/b'],
    ),
    'parts outside': (
        ['train/images/a.jpg', 'valid/images/a.jpg', 'train/labels/a.png', 'valid/labels/a.png'],
        ('train/images', 'train/labels', '.jpg', '.png', ['a']),
        None,
        ['a'],
    ),
    'ends of names': (
        ['a.jpg', 'a_mask.png', 'b.jpg', 'b_mask.png', 'c.jpg'],
        ('', '', '.jpg', '_mask.png', ['a', 'b']),
        ['c'],
        None,
    ),
    'ends of names in folders': (
        ['images/a.jpg', 'images/b.jpg', 'GT/a_gt.png'],
        ('images', 'GT', '.jpg', '_gt.png', ['a']),
        ['b'],
        None,
    ),
    'unlabeled images elsewhere': (
        ['images/a.jpg', 'masks/a.png', 'unlabeled/x.jpg', 'unlabeled/y/z.jpg'],
        ('images', 'masks', '.jpg', '.png', ['a']),
        ['x', 'y/z'],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize('layout', LAYOUTS)
def test_images_and_masks_are_paired(layout, tmp_path):
    files, (images, masks, *ends, names), unlabeled, val = LAYOUTS[layout]
    found = read_folder(make(tmp_path, *files))
    assert found.labeled == (
        str(tmp_path / images), str(tmp_path / masks), *ends, names,
    )  # fmt: skip
    for path in (*found.labeled.image_paths(), *found.labeled.mask_paths()):
        assert Path(path).is_file()
    assert (found.unlabeled and found.unlabeled.names) == unlabeled
    if found.unlabeled:
        assert all(Path(path).is_file() for path in found.unlabeled.image_paths())
    assert (found.val and found.val.names) == val
    if val:
        assert all(Path(path).is_file() for path in found.val.mask_paths())


def test_what_is_left_out_is_said(tmp_path):
    folder = make(
        tmp_path, 'images/a.jpg', 'masks/a.png', 'images/b.png', 'images/test/c.jpg',
        'images/val/d.jpg',
    )  # fmt: skip
    found = read_folder(folder)
    assert found.unlabeled is None and found.val is None
    assert [note.split(':')[0] for note in found.notes] == [
        '1 images of the test part are left alone',
        '1 validation images have no mask',
        '1 images without masks do not end with .jpg, as the labeled ones do',
    ]


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        (['images/a.jpg'], r'no training image with a mask \(1 images, 0 masks\)'),
        (['images/a.jpg', 'masks/b.png'], r'1 of 1 masks have no image .*masks/b\.png'),
        (['images/a.jpg', 'images/a.png', 'masks/a.png'], 'which belong together.*a.png'),
        (['images/a.jpg', 'images/b.png', 'masks/a.png', 'masks/b.png'], 'named in several ways'),
        (['p/images/a.jpg', 'q/images/b.jpg', 'p/masks/a.png', 'q/masks/b.png'],
         '2 pairs of folders'),
    ],
)  # fmt: skip
def test_what_cannot_be_paired_is_refused(files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_folder(make(tmp_path, *files))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no_such is no folder'):
        read_folder(str(tmp_path / 'no_such'))


def test_hidden_files_are_no_images(tmp_path):
    make(tmp_path, 'a.JPG', '.b.png', '.cache/c.png', 'd/e.tif')
    assert find_images(tmp_path) == ['a.JPG', 'd/e.tif']
