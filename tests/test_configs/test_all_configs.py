"""Every shipped config loads, builds its model, and is what its file name says."""

import copy
import functools
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmseg.registry import DATASETS as MMSEG_DATASETS
from tiny_models import tiny_segmentor
from torch.nn.modules.conv import _ConvNd

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RUNNABLE = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.glob('*/*.py')
    # Classifiers have another scope and other parts: test_classification_configs.py.
    if path.parent.name not in ('_base_', 'dmt_classification')
)
SUPERVISED = [name for name in RUNNABLE if name.startswith('supervised/')]
SCHEDULES = sorted(path.name for path in (CONFIGS / '_base_' / 'schedules').glob('*.py'))
NAME = re.compile(
    r'supervised_(?P<head>[^_]+)_(?P<backbone>[^_]+)_(?P<labels>.+?)'
    r'_(?P<dataset>pascal_voc12|cityscapes|ade20k|coco81|camvid|msrc21|folder)'
    r'-(?P<height>\d+)x(?P<width>\d+)\.py'
)
LABELS_OF_FOLDER = {'1_106': '1_105.82', '1_30': '1_29.75'}


@functools.cache
def _load(name):
    return Config.fromfile(CONFIGS / name)


def load(name):
    return resolve_config(copy.deepcopy(_load(name)))


def dicts(value):
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts(item)


def offline(model):
    """The model without weights to fetch, and with three classes, so that few differ."""
    model = copy.deepcopy(model)
    for part in dicts(model):
        if part.get('type') == 'TIMMBackbone':
            part['pretrained'] = False
        if 'init_cfg' in part:
            part['init_cfg'] = None
        if 'num_classes' in part:
            part['num_classes'] = 3
        if part.get('size') is not None:
            part['size'] = (32, 32)
    return model


@functools.cache
def build_once(model_text):
    """Build one of the different models; the text is that of its config."""
    model = Config.fromstring(f'model = {model_text}', '.py').model
    # Nobody looks at the weights: drawing them takes two thirds of the time.
    convolutions = mock.patch.object(_ConvNd, 'reset_parameters')
    linear = mock.patch.object(torch.nn.Linear, 'reset_parameters')
    with convolutions, linear, DefaultScope.overwrite_default_scope('mmseg'):
        return type(MODELS.build(model)).__name__


def test_there_are_configs():
    assert len(SUPERVISED) > 100


@pytest.mark.parametrize('name', RUNNABLE)
def test_config_builds(name):
    cfg = load(name)
    assert cfg.default_scope == 'mmseg'
    assert 'mmdmt' in cfg.custom_imports['imports']
    assert cfg.custom_imports['allow_failed_imports'] is False
    assert cfg.runner_type.startswith('mmdmt.')
    model = offline(cfg.model.to_dict())
    if 'segmentor' in model:
        # An on-line method holds several copies of networks that other configs have, too: build
        # each network once, and the method with small ones.
        segmentor = model['segmentor']
        for network in [segmentor] if 'type' in segmentor else segmentor.values():
            network.pop('data_preprocessor', None)
            build_once(repr(network))
        model['segmentor'] = tiny_segmentor(num_classes=3)
    assert build_once(repr(model)) == cfg.model.type.split('.')[-1]


@pytest.mark.parametrize('name', RUNNABLE)
def test_no_loss_counts_ignored_pixels(name):
    for part in dicts(_load(name).model):
        if part.get('type') == 'CrossEntropyLoss':
            assert part['avg_non_ignore'] is True


@pytest.mark.parametrize('name', SUPERVISED)
def test_supervised_config_is_what_its_name_says(name):
    cfg, parts = load(name), NAME.fullmatch(Path(name).name)
    assert parts, f'{name} does not follow the naming rule'
    head, backbone = cfg.model.decode_head.type, cfg.model.backbone
    assert (
        head
        == {
            'deeplabv2': 'mmdmt.DeepLabV2Head',
            'deeplabv3plus': 'DepthwiseSeparableASPPHead',
            'segformer': 'SegformerHead',
            'upernet': 'UPerHead',
        }[parts['head']]
    )
    if parts['backbone'].startswith('r'):
        assert backbone.depth == int(parts['backbone'][1:])
        assert f'resnet{backbone.depth}' in backbone.init_cfg.checkpoint
    if parts['backbone'].startswith('mit-'):
        assert parts['backbone'].replace('-', '_') in backbone.init_cfg.checkpoint
    assert parts['dataset'] in re.sub(r'\W', '_', cfg.filename)


@pytest.mark.parametrize('name', SUPERVISED)
def test_crop_size_is_the_same_everywhere(name):
    cfg, parts = load(name), NAME.fullmatch(Path(name).name)
    crop = (int(parts['height']), int(parts['width']))
    pipeline = cfg.train_dataloader.dataset.datasets[0].pipeline
    crops = [tuple(step.crop_size) for step in pipeline if step.type == 'RandomCrop']
    assert crops == [crop]
    assert tuple(cfg.model.data_preprocessor.size) == crop
    if cfg.model.test_cfg.mode == 'slide':
        # Also without the runner, as in mmseg's inferencer.
        assert tuple(_load(name).model.test_cfg.crop_size) == crop
        assert all(0 < s < c for s, c in zip(cfg.model.test_cfg.stride, crop))


@pytest.mark.parametrize('name', SUPERVISED)
def test_only_the_named_labels_are_trained_on(name):
    cfg, labels = load(name), NAME.fullmatch(Path(name).name)['labels']
    datasets = cfg.train_dataloader.dataset.datasets
    assert len(datasets) == 1
    assert cfg.train_dataloader.sampler.source_ratio == [1]
    folder = LABELS_OF_FOLDER.get(labels, labels)
    ways = {
        'all': ('', 'ImageSets/Segmentation/trainaug.txt'),
        'labeled': ('splits/labeled.txt',),
        '1464': ('ImageSets/Segmentation/train.txt',),
    }
    default = (f'splits/{folder}/fold_0/labeled.txt', f'splits/{folder}/labeled.txt')
    assert datasets[0].ann_file in ways.get(labels, default)
    assert any(step.type == 'LoadAnnotations' for step in datasets[0].pipeline)


@pytest.mark.parametrize('name', SUPERVISED)
def test_classes_are_those_of_the_data_set(name):
    cfg = load(name)
    metainfo = cfg.train_dataloader.dataset.datasets[0].get('metainfo')
    if not metainfo:
        dataset = MMSEG_DATASETS.get(cfg.train_dataloader.dataset.datasets[0].type)
        metainfo = dataset.METAINFO
    assert cfg.model.decode_head.num_classes == len(metainfo['classes'])


@pytest.mark.parametrize('name', SUPERVISED)
def test_the_list_can_be_changed_in_one_place(name):
    cfg = copy.deepcopy(_load(name))
    cfg.merge_from_dict(dict(labeled_list='/mine.txt', data_root='/data', crop_size=(64, 48)))
    resolve_config(cfg)
    dataset = cfg.train_dataloader.dataset.datasets[0]
    assert dataset.ann_file == '/mine.txt'
    assert dataset.data_root == '/data'
    assert tuple(cfg.model.data_preprocessor.size) == (64, 48)


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule_ends_where_training_ends(name):
    cfg = Config.fromfile(CONFIGS / '_base_' / 'schedules' / name)
    assert cfg.train_cfg.max_iters == cfg.max_iters == cfg.param_scheduler[-1].end
    if re.search(r'_\d+k_', name):
        assert name.startswith(f'schedule_{cfg.max_iters // 1000}k_')
    assert cfg.max_iters % cfg.train_cfg.val_interval == 0
    begin = 0
    for scheduler in cfg.param_scheduler:
        assert scheduler.begin == begin and scheduler.by_epoch is False
        begin = scheduler.end


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule_decays_to_zero(name):
    cfg = Config.fromfile(CONFIGS / '_base_' / 'schedules' / name)
    steps = 400  # the same curve, sooner
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for item in cfg.param_scheduler.copy():
        ends = {key: item[key] * steps // cfg.max_iters for key in ('begin', 'end')}
        item = dict(item, **ends)
        schedulers.append(PARAM_SCHEDULERS.build(item, default_args=dict(optimizer=optimizer)))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    warmup = len(cfg.param_scheduler) == 2
    peak = rates.index(max(rates))
    assert (peak > 0) == warmup
    assert max(rates) == pytest.approx(1.0, abs=0.1)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.0, abs=1e-3)


def test_metafile_lists_every_config():
    listed = yaml.safe_load((CONFIGS / 'supervised' / 'metafile.yml').read_text())['Models']
    assert [model['Config'] for model in listed] == [f'configs/{name}' for name in SUPERVISED]
    assert [model['Name'] for model in listed] == [Path(name).stem for name in SUPERVISED]
