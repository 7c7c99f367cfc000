"""The layouts of the datasets that configs are shipped for, with a few small images each."""

import numpy as np
from PIL import Image

SIZE = (48, 40)
TRAIN = [f'{number:02}' for number in range(10)]
HELD_OUT = ['20', '21']


class Layout:
    """Where a dataset has its files: folders and suffixes of images and masks."""

    def __init__(
        self,
        classes,
        train,
        val,
        test=None,
        img_suffix='.jpg',
        seg_suffix='.png',
        folder='',
        lists='splits/1_8/fold_0',
        val_list=None,
        ids=None,
    ):
        self.classes = classes
        self.parts = [(TRAIN, *train), (HELD_OUT, *val), (HELD_OUT, *(test or val))]
        self.img_suffix, self.seg_suffix = img_suffix, seg_suffix
        self.folder, self.lists, self.val_list = folder, lists, val_list
        self.ids = ids or [*range(classes), 255]  # in the files

    def write(self, root, masks_of=TRAIN):
        rng = np.random.default_rng(0)
        for names, img, ann in self.parts:
            for name in names:
                path = root / img / f'{self.folder}{name}{self.img_suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).save(path)
                path = root / ann / f'{self.folder}{name}{self.seg_suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                if name in masks_of or name in HELD_OUT:
                    mask = rng.choice(self.ids, SIZE[::-1]).astype(np.uint8)
                    Image.fromarray(mask).save(path)
        self._write_list(root / self.lists / 'labeled.txt', TRAIN[:3])
        self._write_list(root / self.lists / 'unlabeled.txt', TRAIN[3:])
        if self.val_list:
            self._write_list(root / self.val_list, HELD_OUT)

    def _write_list(self, path, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(f'{self.folder}{name}\n' for name in names))


def same(kind, img='img', ann='ann'):
    return f'{img}/{kind}', f'{ann}/{kind}'


LAYOUTS = {
    'msrc21': Layout(21, same('train'), same('val'), same('test')),
    'camvid': Layout(11, same('train'), same('val'), same('test'), img_suffix='.png'),
    'pascal_voc12_aug': Layout(
        21,
        ('JPEGImages', 'SegmentationClassAug'),
        ('JPEGImages', 'SegmentationClass'),
        val_list='ImageSets/Segmentation/val.txt',
    ),
    'cityscapes': Layout(
        19,
        same('train', 'leftImg8bit', 'gtFine'),
        same('val', 'leftImg8bit', 'gtFine'),
        img_suffix='_leftImg8bit.png',
        seg_suffix='_gtFine_labelTrainIds.png',
        folder='aachen/aachen_',
    ),
    'ade20k': Layout(
        150,
        same('training', 'images', 'annotations'),
        same('validation', 'images', 'annotations'),
        ids=range(151),
    ),
    'coco81': Layout(
        81,
        ('train2017', 'masks81/train2017'),
        ('val2017', 'masks81/val2017'),
        lists='splits/1_32/fold_0',
    ),
    'kvasir_seg': Layout(
        2, ('images', 'masks_png'), ('images', 'masks_png'), val_list='val.txt', ids=range(2)
    ),
    'folder': Layout(
        2, same('train', 'images', 'masks'), same('val', 'images', 'masks'), lists='splits'
    ),
}
