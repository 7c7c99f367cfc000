"""Each dataset config on a tiny tree of the layout it describes."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.datasets import UnlabeledDataset

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'
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


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def load(name, root, source_ratio=(1, 1), **options):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.merge_from_dict(dict(data_root=str(root), source_ratio=list(source_ratio), **options))
    resolve_config(cfg)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    return cfg


def crop_of(cfg):
    pipeline = cfg.train_dataloader.dataset.datasets[0].pipeline
    return next(step.crop_size for step in pipeline if step.type == 'RandomCrop')


def draw(cfg, number=2):
    return list(islice(Runner.build_dataloader(cfg.train_dataloader, seed=0), number))


@pytest.mark.parametrize('name', LAYOUTS)
def test_training_batches_hold_labeled_and_unlabeled_images(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path, masks_of=TRAIN[:3])  # unlabeled images have no mask at all
    cfg = load(name, tmp_path, batch_size=6)
    for batch in draw(cfg):
        labeled = ['gt_sem_seg' in sample for sample in batch['data_samples']]
        assert labeled == [True] * 3 + [False] * 3
        for image in batch['inputs']:
            assert image.dtype == torch.uint8
            assert all(side <= crop for side, crop in zip(image.shape[1:], crop_of(cfg)))
        for sample in batch['data_samples'][:3]:
            ids = set(sample.gt_sem_seg.data.unique().tolist())
            assert ids <= {*range(layout.classes), 255}
            assert len(ids) > 1
    names = {str(Path(s.img_path).relative_to(tmp_path)) for s in batch['data_samples'][3:]}
    assert all(name.endswith(layout.img_suffix) for name in names)


@pytest.mark.parametrize('name', LAYOUTS)
def test_labeled_only_batches(name, tmp_path):
    LAYOUTS[name].write(tmp_path, masks_of=TRAIN[:3])
    cfg = load(name, tmp_path, source_ratio=[1, 0], unlabeled_list='nowhere.txt', batch_size=3)
    for batch in draw(cfg):
        assert len({sample.img_path for sample in batch['data_samples']}) == 3
        assert all('gt_sem_seg' in sample for sample in batch['data_samples'])


@pytest.mark.parametrize('name', LAYOUTS)
def test_validation_and_test_images_have_labels_of_their_own_size(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    cfg = load(name, tmp_path)
    for loader, part in ((cfg.val_dataloader, 1), (cfg.test_dataloader, 2)):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == len(HELD_OUT)
        sample = dataset[0]['data_samples']
        assert sample.gt_sem_seg.data.shape == (1, *sample.ori_shape)
        assert str(tmp_path / layout.parts[part][1]) in sample.img_path
        assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette'])
        assert len(dataset.metainfo['classes']) == layout.classes


@pytest.mark.parametrize('name', LAYOUTS)
def test_lists_may_lie_anywhere(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path / 'data')
    own = tmp_path / 'own.txt'
    own.write_text(f'{layout.folder}{TRAIN[7]}')
    cfg = load(name, tmp_path / 'data', labeled_list=str(own), batch_size=4)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset.cumulative_sizes == [1, 8]
    assert f'{layout.folder}{TRAIN[7]}{layout.img_suffix}' in dataset.get_data_info(0)['img_path']


@pytest.mark.parametrize('name', LAYOUTS)
def test_names_of_unlabeled_images_are_those_on_the_list(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    dataset = DATASETS.build(load(name, tmp_path).train_dataloader.dataset.datasets[1])
    assert isinstance(dataset, UnlabeledDataset)
    assert dataset.get_data_info(0)['name'] == f'{layout.folder}{TRAIN[3]}'


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_list_that_is_missing_is_an_error(name, tmp_path):
    LAYOUTS[name].write(tmp_path)
    with pytest.raises((FileNotFoundError, AssertionError), match=r'nowhere\.txt'):
        cfg = load(name, tmp_path, labeled_list='nowhere.txt')
        DATASETS.build(cfg.train_dataloader.dataset.datasets[0])
    with pytest.raises(FileNotFoundError, match=r'nowhere\.txt'):
        cfg = load(name, tmp_path, unlabeled_list='nowhere.txt')
        DATASETS.build(cfg.train_dataloader.dataset.datasets[1])


def test_a_child_config_sets_the_data_root_at_the_top(tmp_path):
    LAYOUTS['pascal_voc12_aug'].write(tmp_path / 'voc')
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = '{CONFIGS}/pascal_voc12_aug.py'\n"
        f"data_root = '{tmp_path}/voc'\nsource_ratio = [1, 1]\n"
        'crop_size = (24, 32)\nresize_ratio = (0.5, 1.5)\n'
    )
    cfg = resolve_config(Config.fromfile(child))
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    for image in draw(cfg, 1)[0]['inputs']:
        assert image.shape[1:] == (24, 32)


def test_a_folder_of_ones_own_with_more_unlabeled_images(tmp_path):
    # The child config that the comment in folder.py describes.
    LAYOUTS['folder'].write(tmp_path / 'data')
    (tmp_path / 'more/sub').mkdir(parents=True)
    for name in ('a.jpg', 'sub/b.png'):
        Image.new('RGB', SIZE).save(tmp_path / 'more' / name)
    child = tmp_path / 'child.py'
    child.write_text(
        f"""
_base_ = '{CONFIGS}/folder.py'
data_root = '{tmp_path}/data'
source_ratio = [1, 1]
metainfo = dict(classes=('x', 'y', 'z'))
image_size = (96, 80)
train_dataloader = dict(dataset=dict(datasets=[
    {{{{_base_.labeled_dataset}}}},
    dict(type='ConcatDataset', datasets=[
        {{{{_base_.unlabeled_dataset}}}},
        dict(type='mmdmt.UnlabeledDataset', data_prefix=dict(img_path='{tmp_path}/more'),
             img_suffix=('.jpg', '.png'), name_prefix='more/', metainfo={{{{_base_.metainfo}}}},
             pipeline={{{{_base_.unsup_pipeline}}}}),
    ])]))
"""
    )
    cfg = resolve_config(Config.fromfile(child))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == ('x', 'y', 'z')
    assert dataset.cumulative_sizes == [3, 12]
    names = [dataset.get_data_info(index)['name'] for index in range(3, 12)]
    assert names[-3:] == [TRAIN[9], 'more/a', 'more/sub/b']
    assert dataset.datasets[1].datasets[0].pipeline.transforms[1].scale == (96, 80)


def test_other_suffixes_are_set_once(tmp_path):
    layout = Layout(11, same('train'), same('val'), same('test'), img_suffix='.jpg')
    layout.write(tmp_path)
    cfg = load('camvid', tmp_path, img_suffix='.jpg', batch_size=4)
    assert len(draw(cfg)) == 2
    assert len(DATASETS.build(cfg.test_dataloader.dataset)) == 2
