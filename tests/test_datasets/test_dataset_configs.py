"""Each dataset config on a tiny tree of the layout it describes."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from tiny_layouts import HELD_OUT, LAYOUTS, SIZE, TRAIN, Layout, same

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.datasets import UnlabeledDataset

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


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
