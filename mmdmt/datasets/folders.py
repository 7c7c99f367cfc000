"""What lies in a folder of images: which of them have masks, where, and which validate."""

import os
import os.path as osp
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from mmdmt.checks import listed

#: Ends of files that count as images, in lower case.
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
#: Names of folders of masks, and of folders of images, in lower case.
MASK_FOLDERS = {
    'mask', 'masks', 'ann', 'anns', 'annotation', 'annotations', 'label', 'labels', 'gt', 'gtfine',
    'groundtruth', 'ground_truth', 'seg', 'segmentation', 'segmentations', 'segmentationclass',
}  # fmt: skip
IMAGE_FOLDERS = {'image', 'images', 'img', 'imgs', 'jpegimages', 'input', 'inputs', 'photos'}
#: Ends of the names of masks that lie beside their images, or are named so in another folder.
MASK_ENDS = ('_mask', '-mask', '_seg', '_segmentation', '_label', '_labels', '_gt', '_annotation')
_SPLITS = {
    'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val',
    'test': 'test', 'testing': 'test',
}  # fmt: skip
LAYOUTS = (
    'images/x.jpg with masks/x.png (or img and ann, image and label, ...), also with train and val '
    'inside or around both; or x.jpg with x_mask.png'
)


class Part(NamedTuple):
    """Images that lie and are named alike, as a dataset of mmseg takes them.

    Attributes:
        images: Their folder, absolute.
        masks: Folder of the masks, absolute; empty without masks.
        img_suffix: End of the names of images.
        seg_map_suffix: End of the names of masks.
        names: Paths below both folders without the ends, sorted.
    """

    images: str
    masks: str
    img_suffix: str
    seg_map_suffix: str
    names: List[str]

    def mask_paths(self) -> List[str]:
        """Path of each mask."""
        return [osp.join(self.masks, name + self.seg_map_suffix) for name in self.names]

    def image_paths(self) -> List[str]:
        """Path of each image."""
        return [osp.join(self.images, name + self.img_suffix) for name in self.names]


class FolderData(NamedTuple):
    """What a folder holds.

    Attributes:
        labeled: Training images with masks.
        unlabeled: Training images without; None if all have one.
        val: Validation images with masks; None if none are set apart.
        notes: What was left out, in words.
    """

    labeled: Part
    unlabeled: Optional[Part]
    val: Optional[Part]
    notes: List[str]


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
        ValueError: If it has no image with a mask, masks without images, or images of one part
            that do not lie or are not named alike.
    """
    if not osp.isdir(folder):
        raise FileNotFoundError(f'--data {folder} is no folder')
    folder = osp.abspath(folder)
    masks, images = _divided(find_images(folder))
    pairs = _pairs(folder, images, masks)
    notes = []
    by_split: Dict[str, Dict[str, Optional[str]]] = {}
    for image, mask in pairs.items():
        by_split.setdefault(_split_of(image), {})[image] = mask
    if 'test' in by_split:
        notes.append(f'{len(by_split["test"])} images of the test part are left alone')
    train, val = by_split.get('train', {}), by_split.get('val', {})
    labeled = {image: mask for image, mask in train.items() if mask}
    if not labeled:
        raise ValueError(
            f'--data {folder} has no training image with a mask ({len(images)} images, '
            f'{len(masks)} masks). Found are {LAYOUTS}'
        )
    checked = {image: mask for image, mask in val.items() if mask}
    if len(checked) < len(val):
        notes.append(f'{len(val) - len(checked)} validation images have no mask: not used')
    unlabeled = [image for image, mask in train.items() if not mask]
    labeled_part = _part(folder, labeled, 'training')
    return FolderData(
        labeled=labeled_part,
        unlabeled=_unlabeled_part(folder, unlabeled, labeled_part, notes),
        val=_part(folder, checked, 'validation') if checked else None,
        notes=notes,
    )


def _divided(files: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Masks and images: by their folders, or where no folder tells, by their names."""
    masks = [file for file in files if _folders(file) & MASK_FOLDERS]
    if not masks:
        stems = {file.rsplit('.', 1)[0] for file in files}
        masks = [file for file in files if _without_end(file.rsplit('.', 1)[0]) in stems]
    chosen = set(masks)
    return masks, [file for file in files if file not in chosen]


def _folders(file: str) -> set:
    return {part.lower() for part in PurePosixPath(file).parts[:-1]}


def _without_end(stem: str) -> Optional[str]:
    """The stem of an image, from that of its mask; None where it has no end of masks."""
    return next((stem[: -len(end)] for end in MASK_ENDS if stem.lower().endswith(end)), None)


def _key(file: str) -> str:
    """What an image and its mask have in common: the path without kind of folder and suffix."""
    *folders, name = PurePosixPath(file).parts
    kept = [each for each in folders if each.lower() not in MASK_FOLDERS | IMAGE_FOLDERS]
    return '/'.join([*kept, name.rsplit('.', 1)[0]])


def _pairs(folder: str, images: Sequence[str], masks: Sequence[str]) -> Dict[str, Optional[str]]:
    """The mask of each image, or None.

    Raises:
        ValueError: If a mask has no image or two, or an image two masks.
    """
    by_key: Dict[str, List[str]] = {}
    for image in images:
        by_key.setdefault(_key(image), []).append(image)
    found: Dict[str, Optional[str]] = dict.fromkeys(images)
    alone = []
    for mask in masks:
        key = _key(mask)
        owners = by_key.get(key) or by_key.get(_without_end(key) or '') or []
        if len(owners) > 1 or (owners and found[owners[0]]):
            several = owners if len(owners) > 1 else [found[owners[0]], mask]
            raise ValueError(
                f'--data {folder}: which belong together? {listed(several)} and {mask}'
            )
        if owners:
            found[owners[0]] = mask
        else:
            alone.append(mask)
    if alone:
        raise ValueError(
            f'--data {folder}: {len(alone)} of {len(masks)} masks have no image of their name: '
            f'{listed(alone, 3)}. Found are {LAYOUTS}'
        )
    return found


def _split_of(image: str) -> str:
    """'train', 'val' or 'test', by a folder on the way."""
    parts = (part.lower() for part in PurePosixPath(image).parts[:-1])
    return next((_SPLITS[part] for part in parts if part in _SPLITS), 'train')


def _part(folder: str, pairs: Dict[str, Optional[str]], what: str) -> Part:
    """Folders and ends that all pairs share."""
    ends = Counter(_ends(image, mask) for image, mask in pairs.items())
    if len(ends) > 1:
        found = [f'*{a} with *{b} ({count})' for (a, b), count in ends.items()]
        raise ValueError(
            f'--data {folder}: {what} images and masks are named in several ways: {listed(found)}. '
            'Convert or rename them to one'
        )
    img_suffix, seg_map_suffix = next(iter(ends))
    roots = {_place(image, mask) for image, mask in pairs.items()}
    if len(roots) > 1:
        found = [f'{a or "."} with {b or "."}' for a, b in sorted(roots)]
        raise ValueError(
            f'--data {folder}: {what} images lie in {len(roots)} pairs of folders: '
            f'{listed(found, 3)}. Put them into one: {LAYOUTS}'
        )
    images, masks = roots.pop()
    names = sorted(osp.relpath(image, images or '.')[: -len(img_suffix)] for image in pairs)
    paths = [osp.normpath(osp.join(folder, each)) for each in (images, masks)]
    return Part(*paths, img_suffix, seg_map_suffix, names)


def _ends(image: str, mask: str) -> Tuple[str, str]:
    """What follows the common name."""
    (stem, img_suffix), (other, suffix) = osp.splitext(image), osp.splitext(mask)
    name, mask_name = osp.basename(stem), osp.basename(other)
    return img_suffix, mask_name[len(name) :] + suffix


def _place(image: str, mask: str) -> Tuple[str, str]:
    """Folders of images and masks below which an image and its mask have the same path."""
    left, right = list(PurePosixPath(image).parts[:-1]), list(PurePosixPath(mask).parts[:-1])
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    return '/'.join(left), '/'.join(right)


def _unlabeled_part(
    folder: str, images: List[str], labeled: Part, notes: List[str]
) -> Optional[Part]:
    """Images without masks, of the suffix of the labeled ones."""
    same = [image for image in images if image.endswith(labeled.img_suffix)]
    if len(same) < len(images):
        notes.append(
            f'{len(images) - len(same)} images without masks do not end with '
            f'{labeled.img_suffix}, as the labeled ones do: not used'
        )
    if not same:
        return None
    paths = [osp.join(folder, image) for image in same]
    below = all(path.startswith(labeled.images + os.sep) for path in paths)
    root = labeled.images if below else osp.commonpath([osp.dirname(path) for path in paths])
    names = sorted(osp.relpath(path, root)[: -len(labeled.img_suffix)] for path in paths)
    return Part(root, '', labeled.img_suffix, '', names)
