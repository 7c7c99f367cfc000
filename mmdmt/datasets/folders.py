"""What lies in a folder of images: which of them have masks, where, and which validate."""

import os
import os.path as osp
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Dict, List, NamedTuple, Optional, Union

from mmdmt.checks import listed

#: Ends of files that count as images, in lower case.
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.npy', '.png', '.tif', '.tiff', '.webp')
#: Names of folders of masks, and of folders of images, in lower case.
MASK_FOLDERS = {
    'mask', 'masks', 'ann', 'anns', 'annotation', 'annotations', 'label', 'labels', 'gt', 'gtfine',
    'groundtruth', 'ground_truth', 'seg', 'segmentation', 'segmentations', 'segmentationclass',
}  # fmt: skip
IMAGE_FOLDERS = {'image', 'images', 'img', 'imgs', 'jpegimages', 'input', 'inputs', 'photos'}
# What the names of masks, and of images, have at an end: a_mask, mask_a, or no more than mask.
_MASK = re.compile(r'(masks?|seg|segmentation|labels?|gt|annotation)', re.I)
_IMAGE = re.compile(r'(images?|img|input|photo)', re.I)
_SPLITS = {
    'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val',
    'test': 'test', 'testing': 'test',
}  # fmt: skip
_FEW_CASES = 5  # of fewer, no fifth can be taken
LAYOUTS = (
    'images/x.jpg with masks/x.png (or img and ann, image and label, ...), also with train and val '
    'inside or around both, or with folders of cases inside or around both; or x.jpg with '
    'x_mask.png; or case/image.jpg with case/mask.png'
)


class Layout(NamedTuple):
    """Folders of images and masks that lie and are named alike, '' for that of all, and ends."""

    images: str
    masks: str
    img_suffix: str
    seg_map_suffix: str

    def names(self, images: Iterable[str]) -> List[str]:
        """Paths below both folders without the ends."""
        end = -len(self.img_suffix) or None
        return [osp.relpath(each, self.images or '.')[:end] for each in images]


class FolderData(NamedTuple):
    """What a folder, ``root``, holds: masks by images to train and to validate on, paths below it.

    ``unlabeled`` are training images without a mask; ``notes`` say what was left out.
    """

    root: str
    labeled: Dict[str, str]
    unlabeled: List[str]
    val: Dict[str, str]
    notes: List[str]

    def pairs(self) -> Dict[str, str]:
        """All images with masks."""
        return {**self.labeled, **self.val}


def find_images(folder: Union[str, Path]) -> List[str]:
    """Paths below a folder of all images in it, sorted; hidden files and folders do not count."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        images = (f for f in files if f.lower().endswith(IMAGE_SUFFIXES) and f[0] != '.')
        found += [osp.relpath(osp.join(place, file), folder) for file in images]
    return sorted(path.replace(os.sep, '/') for path in found)


def read_folder(folder: str) -> FolderData:
    """Find the images of a folder, their masks, and a validation part.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no image with a mask, or masks without images.
    """
    if not osp.isdir(folder):
        raise FileNotFoundError(f'--data {folder} is no folder')
    folder = osp.abspath(folder)
    pairs = pair_masks(folder)
    notes = []
    by_split: Dict[str, Dict[str, Optional[str]]] = {}
    for image, mask in pairs.items():
        by_split.setdefault(_split_of(image), {})[image] = mask
    if 'test' in by_split:
        notes.append(f'{len(by_split["test"])} images of the test part are left alone')
    train, val = by_split.get('train', {}), by_split.get('val', {})
    labeled = {image: mask for image, mask in train.items() if mask}
    if not labeled:
        masks = sum(mask is not None for mask in pairs.values())
        raise ValueError(
            f'--data {folder} has no training image with a mask ({len(pairs)} images, '
            f'{masks} masks). Found are {LAYOUTS}'
        )
    checked = {image: mask for image, mask in val.items() if mask}
    if len(checked) < len(val):
        notes.append(f'{len(val) - len(checked)} validation images have no mask: not used')
    unlabeled = [image for image, mask in train.items() if not mask]
    return FolderData(folder, labeled, unlabeled, checked, notes)


def pair_masks(folder: str) -> Dict[str, Optional[str]]:
    """The mask of each image of a folder, or None; paths are below it.

    Raises:
        ValueError: If a mask has no image or two, or an image two masks.
    """
    masks, images = _divided(find_images(folder))
    keys: Dict[str, List[str]] = {}
    beside: Dict[str, List[str]] = {}
    for image in images:
        for key in {_key(image), _key(image, _IMAGE)}:
            keys.setdefault(key, []).append(image)
        beside.setdefault(osp.dirname(_key(image)), []).append(image)
    found: Dict[str, Optional[str]] = dict.fromkeys(images)
    alone = []
    for mask in masks:
        owners = keys.get(_key(mask)) or keys.get(_key(mask, _MASK)) or []
        if not owners and _MASK.fullmatch(PurePosixPath(mask).stem):
            owners = beside.get(osp.dirname(_key(mask)), [])  # case/scan.png, case/mask.png
        if len(owners) > 1 or (owners and found[owners[0]]):
            several = owners if len(owners) > 1 else [found[owners[0]], mask]
            raise ValueError(
                f'--data {folder}: which belong together? {listed(several, 4)} and {mask}'
            )
        if owners:
            found[owners[0]] = mask
        else:
            alone.append(mask)
    if alone:
        raise ValueError(
            f'--data {folder}: {len(alone)} of {len(masks)} masks have no image of their name: '
            f'{listed(alone, 3)}. Rename them or move them elsewhere. Found are {LAYOUTS}'
        )
    return found


def layout_of(pairs: Mapping[str, str]) -> Optional[Layout]:
    """What all pairs have in common; None if they lie or are named in several ways."""
    found = set()
    for image, mask in pairs.items():
        (stem, suffix), name = osp.splitext(image), osp.basename(mask)
        left, right = (list(PurePosixPath(each).parts[:-1]) for each in (image, mask))
        while left and right and left[-1] == right[-1]:
            left, right = left[:-1], right[:-1]
        if not name.startswith(osp.basename(stem)):
            return None
        end = name[len(osp.basename(stem)) :]
        found.add(Layout('/'.join(left), '/'.join(right), suffix, end))
    return found.pop() if len(found) == 1 else None


def cases_of(images: Sequence[str]) -> Dict[str, str]:
    """The case (patient, sequence, place) of each image: a folder on its way, or itself.

    Of nested folders those nearest to the root count of which there are at least five. Folders
    of images and of parts are no cases.
    """
    ways = {image: _key(image).split('/')[1:-1] for image in images}
    ways = {i: [each for each in way if each.lower() not in _SPLITS] for i, way in ways.items()}
    cases: Dict[str, str] = {}
    for depth in range(1, 1 + max(map(len, ways.values()), default=0)):
        cases = {image: '/'.join(way[:depth]) for image, way in ways.items()}
        if len(set(cases.values())) >= _FEW_CASES:
            break
    several = len(set(cases.values())) > 1
    return {image: (several and cases[image]) or image for image in images}


def _divided(files: Sequence[str]) -> tuple:
    """Masks and images: by their folders, or where no folder tells, by their names."""
    masks = [file for file in files if _folders(file) & MASK_FOLDERS]
    if not masks:
        named = [file for file in files if _key(file, _MASK) != _key(file)]
        rest = set(files) - set(named)
        known = {key for file in rest for key in (_key(file), _key(file, _IMAGE))}
        known |= {osp.dirname(_key(file)) + '/' for file in rest}  # of case/mask.png
        masks = [file for file in named if _key(file, _MASK) in known]
    chosen = set(masks)
    return masks, [file for file in files if file not in chosen]


def _folders(file: str) -> set:
    return {part.lower() for part in PurePosixPath(file).parts[:-1]}


def _key(file: str, word: Optional[re.Pattern] = None) -> str:
    """What an image and its mask have in common: the path without kind of folder and suffix.

    ``word`` is left out at the beginning and the end of the name.
    """
    *folders, name = PurePosixPath(file).parts
    kept = [each for each in folders if each.lower() not in MASK_FOLDERS | IMAGE_FOLDERS]
    stem = osp.splitext(name)[0]
    if word is not None:
        stem = re.sub(f'^{word.pattern}([_-]|$)|[_-]{word.pattern}$', '', stem, flags=re.I)
    return '/'.join(['', *kept, stem])


def _split_of(image: str) -> str:
    """'train', 'val' or 'test', by a folder on the way."""
    parts = (part.lower() for part in PurePosixPath(image).parts[:-1])
    return next((_SPLITS[part] for part in parts if part in _SPLITS), 'train')
