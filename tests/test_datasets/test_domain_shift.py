"""Labels of one dataset, images of another: batches, data check and settings."""

from itertools import islice

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from tiny_shift import CAR, ROAD, SKY, make_cities, make_gta5, make_synthia, shift_config

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.datasets.checks.validation import check_dataset

SOURCES = {'gta5_cityscapes': make_gta5, 'synthia_cityscapes': make_synthia}


@pytest.fixture(scope='module')
def cities(tmp_path_factory):
    return make_cities(tmp_path_factory.mktemp('cities'))


@pytest.fixture(params=SOURCES)
def config(request, cities, tmp_path):
    init_default_scope('mmseg')
    (tmp_path / 'source').mkdir()
    labeled = SOURCES[request.param](tmp_path / 'source')
    return resolve_config(shift_config(request.param, labeled, cities, tmp_path / 'run'))


def test_each_source_has_its_own_folder_suffix_size_and_labels(config):
    labeled, unlabeled = DATASETS.build(config.train_dataloader.dataset).datasets
    assert (len(labeled), len(unlabeled)) == (4, 6)  # without the pair of two sizes
    for batch in islice(Runner.build_dataloader(config.train_dataloader, seed=0), 3):
        samples = batch['data_samples']
        assert ['gt_sem_seg' in sample for sample in samples] == [True, True, False, False]
        for sample in samples[:2]:
            assert '/source/' in sample.img_path
            assert set(sample.gt_sem_seg.data.unique().tolist()) <= {ROAD, SKY, CAR}
        for sample in samples[2:]:
            assert sample.img_path.endswith('_leftImg8bit.png') and sample.name[:8] == 'ulm/ulm_'
        assert all(max(image.shape[1:]) <= 24 for image in batch['inputs'])
    scales = [dataset.pipeline.transforms[-4].scale for dataset in (labeled, unlabeled)]
    assert scales == [(48, 36), (64, 32)]


def test_scores_are_taken_on_the_target_at_the_size_of_its_labels(config):
    sample = DATASETS.build(config.val_dataloader.dataset)[0]
    assert sample['data_samples'].gt_sem_seg.shape == (32, 64)
    if config.val_evaluator.type == 'mmdmt.IoUOfClasses':
        names = DATASETS.build(config.val_dataloader.dataset).metainfo['classes']
        missing = {'terrain', 'truck', 'train'}
        assert {*config.val_evaluator.classes} == {*names} - missing
        thirteen = {*names} - missing - {'wall', 'fence', 'pole'}
        assert {*config.val_evaluator.also.mIoU_13} == thirteen


def test_the_data_check_finds_nothing_in_sound_sources(config):
    train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
    assert check_dataset(train, val, progress=False) == []


def test_images_of_one_name_in_two_datasets_are_no_overlap(tmp_path):
    init_default_scope('mmseg')
    rng = np.random.default_rng(0)
    names = ['0', '1']
    for root in ('games', 'cities', 'held_out'):
        for name in names:
            (tmp_path / root / 'a').mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / root / f'{name}.jpg')
            Image.fromarray(image[..., 0] % 2).save(tmp_path / root / f'a/{name}.png')
        (tmp_path / root / 'list.txt').write_text('\n'.join(names))

    def source(root, kind='BaseSegDataset', **prefix):
        common = dict(ann_file='list.txt', data_prefix=dict(img_path='', **prefix))
        classes = dict(classes=('x', 'y'), palette=[[0] * 3, [9] * 3])
        return dict(type=kind, data_root=str(tmp_path / root), metainfo=classes, **common)

    train = [source('games', seg_map_path='a'), source('cities', 'mmdmt.UnlabeledDataset')]
    val = source('held_out', seg_map_path='a')
    assert check_dataset(train, val, progress=False) == []
    train[0] = source('held_out', seg_map_path='a')
    assert {p.kind for p in check_dataset(train, val, progress=False)} == {'validation overlap'}


def test_settings_of_the_labeled_source_leave_the_other_one_alone(cities, tmp_path):
    cfg = shift_config('synthia_cityscapes', '/games', cities, tmp_path)
    cfg.merge_from_dict(
        dict(labeled_img_suffix='.jpg', labeled_seg_map_suffix='.x.png', img_suffix='_small.png')
    )
    labeled, unlabeled = resolve_config(cfg).train_dataloader.dataset.datasets
    assert (labeled.data_root, unlabeled.data_root) == ('/games', str(cities))
    assert (labeled.img_suffix, unlabeled.img_suffix) == ('.jpg', '_small.png')
    assert labeled.seg_map_suffix == '.x.png'
    val = cfg.val_dataloader.dataset
    assert (val.data_root, val.img_suffix) == (str(cities), '_small.png')
    assert val.seg_map_suffix == '_gtFine_labelTrainIds.png'
