import copy

import pytest
from mmengine.config import Config

from mmdmt.config import resolve_config

TEXT = """
data_root = 'data/x'
labeled_list = 'l.txt'
unlabeled_list = 'u.txt'
crop_size = (32, 32)
batch_size = 4
overridable = dict(
    data_root=data_root, labeled_list=labeled_list, unlabeled_list=unlabeled_list,
    crop_size=crop_size, batch_size=batch_size)
pipeline = [dict(type='RandomCrop', crop_size=crop_size)]
parts = [
    dict(data_root=data_root, ann_file=labeled_list, pipeline=pipeline),
    dict(data_root='elsewhere', ann_file=unlabeled_list, pipeline=pipeline),
]
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(batch_size=batch_size),
    dataset=dict(datasets=parts))
val_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root, ann_file='v.txt'))
model = dict(data_preprocessor=dict(size=crop_size), other=dict(size=(9, 9)))
"""


@pytest.fixture
def cfg():
    return Config.fromstring(TEXT, '.py')


def test_one_data_root_moves_every_data_set_that_used_it(cfg):
    cfg.merge_from_dict(dict(data_root='/new'))
    resolve_config(cfg)
    first, second = cfg.train_dataloader.dataset.datasets
    assert (first.data_root, second.data_root) == ('/new', 'elsewhere')
    assert cfg.val_dataloader.dataset.data_root == '/new'
    assert cfg.parts[0].data_root == '/new'


def test_lists_move_even_if_they_swap_places(cfg):
    cfg.merge_from_dict(dict(labeled_list='u.txt', unlabeled_list='l.txt'))
    resolve_config(cfg)
    assert [d.ann_file for d in cfg.train_dataloader.dataset.datasets] == ['u.txt', 'l.txt']
    assert cfg.val_dataloader.dataset.ann_file == 'v.txt'


def test_the_crop_size_reaches_pipelines_and_the_model(cfg):
    cfg.merge_from_dict(dict(crop_size=[64, 48]))  # a list, as the command line gives it
    resolve_config(cfg)
    for dataset in cfg.train_dataloader.dataset.datasets:
        assert dataset.pipeline[0].crop_size == (64, 48)
    assert cfg.model.data_preprocessor['size'] == (64, 48)
    assert cfg.model.other['size'] == (9, 9)


def test_the_batch_size_is_that_of_training_only(cfg):
    cfg.merge_from_dict(dict(batch_size=6))
    resolve_config(cfg)
    assert cfg.train_dataloader.batch_size == cfg.train_dataloader.sampler.batch_size == 6
    assert cfg.val_dataloader.batch_size == 4


def test_a_place_with_a_value_of_its_own_keeps_it(cfg):
    cfg.merge_from_dict({'data_root': '/new', 'val_dataloader.dataset.data_root': '/val'})
    assert resolve_config(cfg).val_dataloader.dataset.data_root == '/val'


def test_works_once_and_again(cfg):
    cfg.merge_from_dict(dict(data_root='/new', crop_size=(8, 8)))
    once = copy.deepcopy(resolve_config(cfg)).to_dict()
    assert resolve_config(cfg).to_dict() == once
    cfg.merge_from_dict(dict(data_root='/newer'))
    assert resolve_config(cfg).val_dataloader.dataset.data_root == '/newer'


def test_works_on_a_config_that_was_dumped_and_read_again(cfg, tmp_path):
    cfg.merge_from_dict(dict(data_root='/new'))
    resolve_config(cfg).dump(tmp_path / 'cfg.py')
    again = Config.fromfile(tmp_path / 'cfg.py')
    again.merge_from_dict(dict(data_root='/newer'))
    assert resolve_config(again).val_dataloader.dataset.data_root == '/newer'


def test_an_unchanged_config_stays_as_it_is(cfg):
    before = copy.deepcopy(cfg).to_dict()
    assert resolve_config(cfg).to_dict() == before


def test_length_classes_and_validation_list(cfg):
    cfg.merge_from_dict(
        dict(
            overridable=dict(max_iters=100, num_classes=10, val_list='v.txt'),
            train_cfg=dict(max_iters=100, val_interval=100),
            param_scheduler=[dict(begin=0, end=10), dict(begin=10, end=100)],
            mutual=dict(round=dict(max_iters=100)),
            max_iters=77,
            num_classes=5,
            val_list='w.txt',
        )
    )
    cfg.model.head = dict(num_classes=10)
    cfg.train_dataloader.dataset.datasets[0].ann_file = 'v.txt'
    resolve_config(cfg)
    assert cfg.train_cfg.to_dict() == dict(max_iters=77, val_interval=100)
    assert [scheduler.end for scheduler in cfg.param_scheduler] == [10, 77]
    assert cfg.mutual.round.max_iters == 100
    assert cfg.model.head.num_classes == 5
    assert cfg.val_dataloader.dataset.ann_file == 'w.txt'
    assert cfg.train_dataloader.dataset.datasets[0].ann_file == 'v.txt'


def test_a_config_without_overridable_settings_is_left_alone():
    cfg = Config(dict(data_root='/new', val_dataloader=dict(dataset=dict(data_root='old'))))
    assert resolve_config(cfg).val_dataloader.dataset.data_root == 'old'


def test_unknown_settings_are_refused(cfg):
    cfg.overridable.colour = 1
    with pytest.raises(ValueError, match=r"\['colour'\]; known: .*data_root"):
        resolve_config(cfg)


def test_different_batch_sizes_of_loader_and_sampler_are_refused(cfg):
    cfg.merge_from_dict({'train_dataloader.batch_size': 8})
    with pytest.raises(ValueError, match=r'`train_dataloader\.batch_size` is 8.* is 4'):
        resolve_config(cfg)
