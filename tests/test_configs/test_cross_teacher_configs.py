"""The configs of Cross Teacher Training are what their names and the issue say."""

import copy
import functools
import inspect
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.models.losses.contrast.cross_contrast import CrossContrast

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = sorted(path.stem for path in (CONFIGS / 'cross_teacher').glob('*.py'))
NAME = re.compile(
    r'cross-teacher(?P<kind>-[a-z-]+)?_(?P<head>[^_]+)_(?P<backbone>[^_]+)_(?P<labels>.+?)'
    r'_(?P<dataset>pascal_voc12|cityscapes|camvid|msrc21|folder)-(?P<height>\d+)x(?P<width>\d+)'
)
MSRC21 = 'deeplabv3plus_mobilenetv2_msrc21-96x96'
HEADS = {
    'deeplabv2': 'mmdmt.DeepLabV2Head',
    'deeplabv3plus': 'DepthwiseSeparableASPPHead',
    'segformer': 'SegformerHead',
}
LABELED = {
    ('cityscapes', '1_8'): 372,
    ('cityscapes', '1_30'): 100,
    ('pascal_voc12', '1_50'): 212,
    ('pascal_voc12', '1_8'): 1323,
    ('camvid', '1_8'): 45,
    ('msrc21', '1_8'): 34,
    ('folder', 'labeled'): None,
}


@functools.cache
def _load(name):
    return resolve_config(Config.fromfile(CONFIGS / 'cross_teacher' / f'{name}.py'))


def load(name):
    return copy.deepcopy(_load(name)), NAME.fullmatch(name)


def test_the_protocols_of_the_paper_are_there():
    found = {
        tuple(NAME.fullmatch(name).group('head', 'backbone', 'labels', 'dataset')) for name in NAMES
    }
    assert {
        ('deeplabv2', 'r101', '1_8', 'cityscapes'),
        ('deeplabv2', 'r101', '1_30', 'cityscapes'),
        ('deeplabv2', 'r101', '1_50', 'pascal_voc12'),
        ('segformer', 'mit-b1', '1_8', 'cityscapes'),
        ('deeplabv3plus-segformer', 'r50-mit-b1', '1_8', 'pascal_voc12'),
    } <= found
    for backbone in ('r50', 'r101'):
        for labels in ('92', '183', '366', '732', '1464'):
            assert ('deeplabv3plus', backbone, labels, 'pascal_voc12') in found
    assert {dataset for *_, dataset in found} >= {'msrc21', 'camvid', 'folder'}


@pytest.mark.parametrize('name', NAMES)
def test_config_is_what_its_name_says(name):
    cfg, parts = load(name)
    segmentor = cfg.model.segmentor
    pair = [segmentor] if 'type' in segmentor else [segmentor.l, segmentor.r]
    backbones = parts['backbone'].split('-', 1) if len(pair) == 2 else [parts['backbone']]
    for network, head, backbone in zip(pair, parts['head'].split('-'), backbones):
        assert 'data_preprocessor' not in network
        assert network.decode_head.type == HEADS[head]
        if backbone.startswith('r'):
            assert network.backbone.depth == int(backbone[1:])
            assert f'resnet{backbone[1:]}' in network.backbone.init_cfg.checkpoint
        if backbone.startswith('mit-'):
            plain = Config.fromfile(CONFIGS / '_base_' / 'models' / f'segformer_{backbone}.py')
            assert network.backbone.to_dict() == plain.model.backbone.to_dict()
    crop = (int(parts['height']), int(parts['width']))
    assert tuple(cfg.model.data_preprocessor.size) == crop
    assert cfg.model.data_preprocessor.num_strong == 2
    assert cfg.model.data_preprocessor.strong.preset == 'ctt'


@pytest.mark.parametrize('name', NAMES)
def test_labeled_and_unlabeled_lists_belong_together(name):
    cfg, parts = load(name)
    labeled, unlabeled = cfg.train_dataloader.dataset.datasets
    labels = parts['labels']
    folder = {'labeled': 'splits', '1_30': 'splits/1_29.75/fold_0'}.get(labels, f'splits/{labels}')
    folder += '/fold_0' if re.fullmatch(r'1_\d+', labels) and 'fold' not in folder else ''
    assert unlabeled.type == 'mmdmt.UnlabeledDataset'
    assert unlabeled.ann_file == f'{folder}/unlabeled.txt'
    train = 'ImageSets/Segmentation/train.txt'
    assert labeled.ann_file == (train if labels == '1464' else f'{folder}/labeled.txt')
    assert cfg.train_dataloader.sampler.source_ratio == [1, 1]


@pytest.mark.parametrize('name', NAMES)
def test_the_method_is_complete(name):
    cfg, parts = load(name)
    assert cfg.model.type == 'mmdmt.CrossTeacher'
    assert [hook.type for hook in cfg.custom_hooks] == ['mmdmt.TeacherUpdateHook']
    for loop in (cfg.val_cfg, cfg.test_cfg):
        assert loop.networks[:2] == ['student_l', 'student_r']
    assert cfg.model.semi_test_cfg.predict_on in cfg.val_cfg.networks
    settings = cfg.model.semi_train_cfg
    assert settings.mix.type == 'mmdmt.ClassMix'
    if settings.contrast is None:
        return
    assert set(settings.contrast) <= set(inspect.signature(CrossContrast.__init__).parameters)
    key = parts['dataset'], parts['labels']
    expected = LABELED[key] if key in LABELED else int(parts['labels'])
    assert settings.contrast.get('num_labeled') == expected


@pytest.mark.parametrize('name', [name for name in NAMES if 'cityscapes' in name])
def test_cityscapes_has_the_values_of_the_paper(name):
    settings = load(name)[0].model.semi_train_cfg
    assert (settings.threshold, settings.unsup_weight) == (0.968, 1.0)
    assert settings.ema.momentum == 0.99
    if settings.contrast:
        found = settings.contrast
        assert (found.high_temperature, found.low_temperature, found.threshold) == (0.1, 0.5, 0.75)
        assert (found.bank_size, found.bank_threshold) == (256, 0.95)


@pytest.mark.parametrize(
    ('kind', 'changed'),
    [
        ('-no-contrast', dict(contrast=None)),
        ('-no-high', dict(high_weight=0)),
        ('-no-low', dict(low_weight=0)),
        ('-own-teacher', dict(taught_by='own')),
        ('-own-teacher-no-contrast', dict(taught_by='own', contrast=None)),
    ],
)
def test_an_ablation_differs_in_its_point_alone(kind, changed):
    whole, _ = load(f'cross-teacher_{MSRC21}')
    ablation, _ = load(f'cross-teacher{kind}_{MSRC21}')
    assert {key for key in whole if whole[key] != ablation[key]} == {'model'}
    settings = whole.model.semi_train_cfg
    for key, value in changed.items():
        (settings.contrast if key.endswith('weight') else settings)[key] = value
    assert whole.model == ablation.model


def test_the_mixed_pair_has_one_optimizer_with_rates_of_its_own():
    cfg, _ = load('cross-teacher_deeplabv3plus-segformer_r50-mit-b1_pascal_voc12-321x321')
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys['student_l.backbone'].lr_mult == 2.0
    assert keys['norm'].decay_mult == 0.0


def test_metafile_lists_every_config():
    listed = yaml.safe_load((CONFIGS / 'cross_teacher' / 'metafile.yml').read_text())['Models']
    assert [model['Name'] for model in listed] == NAMES
    for model in listed:
        assert model['Config'] == f'configs/cross_teacher/{model["Name"]}.py'
    index = yaml.safe_load((CONFIGS.parent / 'model-index.yml').read_text())['Import']
    assert 'configs/cross_teacher/metafile.yml' in index
