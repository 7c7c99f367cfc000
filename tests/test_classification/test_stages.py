"""Configs of the stages of classification, without training."""

import inspect

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_classification import (
    classification_config,
    make_folders,
    mutual_classification,
)

import mmdmt.classification  # noqa: F401
from mmdmt.classification import MutualClassifier
from mmdmt.classification.soft_labels import SoftLabelStore
from mmdmt.classification.stages import PSEUDO_LOSS_KEYS
from mmdmt.config import resolve_config
from mmdmt.engine.mutual import build_stage_config_builder
from mmdmt.files import shipped_dir
from mmdmt.registry import DATASETS, MODELS


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('folders'))


def config(tree, **settings):
    cfg = classification_config(tree, '/work_dir')
    return Config(dict(mutual_classification(cfg, **settings), default_scope='mmpretrain'))


def sources(cfg):
    return cfg.train_dataloader.dataset.datasets


def plain_packing(cfg):
    """What pipelines of mmpretrain end with."""
    for source in sources(cfg):
        source.pipeline[-1] = dict(type='PackInputs')
    return cfg


def test_soft_labels_reach_the_classifier_whatever_the_pipeline_packs(tree, tmp_path):
    """Samples without a `soft_label` count as ground truth: all weights would be 1."""
    builder = build_stage_config_builder(plain_packing(config(tree)))
    cfg = builder.build(builder.plan.stages[1], str(tmp_path), teacher_checkpoint='a.pth')
    names = (tree / 'unlabeled.txt').read_text().split()
    soft = np.full((len(names), 3), (0.5, 0.3, 0.2), np.float32)
    SoftLabelStore(tmp_path / 'soft_labels.npz').write(names, soft, np.ones(24, bool), {})
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        samples = [DATASETS.build(source)[0] for source in sources(cfg)]
        model = MODELS.build(cfg.model)
    data = dict(
        inputs=torch.stack([sample['inputs'] for sample in samples] * 2),
        data_samples=[sample['data_samples'] for sample in samples] * 2,
    )
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    assert losses['mean_weight'] < 1
    _, is_pseudo = model._targets(data['data_samples'], torch.device('cpu'))
    assert is_pseudo.tolist() == [False, True] * 2


def test_other_keys_are_packed_as_before(tree):
    cfg = config(tree)
    sources(cfg)[1].pipeline[-1].algorithm_keys = ('mask',)
    builder = build_stage_config_builder(cfg)
    for _ in range(2):  # building changes nothing that a second stage would see
        stage = builder.build(builder.plan.stages[1], '/s', teacher_checkpoint='a.pth')
        assert sources(stage)[1].pipeline[-1].algorithm_keys == ('mask', 'soft_label')


@pytest.mark.parametrize('last', [dict(type='PackMultiTaskInputs', multi_task_fields=()), None])
def test_a_pipeline_that_packs_otherwise_is_refused(tree, last):
    cfg = config(tree)
    sources(cfg)[1].pipeline = [last] if last else []
    builder = build_stage_config_builder(cfg)
    with pytest.raises(ValueError, match=r"datasets\[1\]\.pipeline`, must end with dict\(type='P"):
        builder.build(builder.plan.stages[1], '/s', teacher_checkpoint='a.pth')


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(pseudo_loss=dict(gamma=1.0)), r"mutual\.pseudo_loss. has unknown keys .'gamma'."),
        (
            dict(pseudo_loss=dict(gamma2=-1.0)),
            r'mutual\.pseudo_loss\.gamma2. must be in .*, got -1',
        ),
        (dict(labeling=dict(selection='top')), r"selection. must be one of .*, got 'top'"),
        (dict(round=dict(batch_statistics='domain')), 'batch_statistics. is for segmentation'),
        (dict(ratios=[0.05, 1.0]), r'mutual\.ratios.=\[0\.05, 1\.0\] .*selects none of 24 images'),
        (
            dict(ratios=[0.5, 0.01], labeling=dict(selection='rank')),
            r'unlabeled\.txt: a ratio of 0\.01 selects none .*use a larger ratio$',
        ),
    ],
)
def test_faulty_settings_of_the_rounds_are_refused_at_once(tree, settings, message):
    with pytest.raises(ValueError, match=message):
        build_stage_config_builder(config(tree, **settings))


def test_selection_by_class_leaves_no_class_out_at_any_ratio(tree):
    cfg = config(tree, ratios=[0.01, 1.0], labeling=dict(selection='class'))
    assert build_stage_config_builder(cfg).plan.ratios == [0.01, 1.0]


def test_ratios_are_not_judged_without_a_list(tree):
    cfg = config(tree, ratios=[0.01, 1.0])
    sources(cfg)[1].ann_file = ''
    assert build_stage_config_builder(cfg).plan.ratios == [0.01, 1.0]


def test_setting_custom_hooks_keeps_the_average_and_the_ledger_compares_it(tmp_path):
    base = shipped_dir('configs') / 'dmt_classification' / 'dmt_wrn-28-2_1000_cifar10-32x32.py'

    def stage(**hooks):
        child = tmp_path / 'child.py'
        child.write_text(
            f"_base_ = '{base}'\ncustom_hooks = [dict(type='EmptyCacheHook')]\n"
            f'default_hooks = {hooks}\n'
        )
        builder = build_stage_config_builder(resolve_config(Config.fromfile(child)))
        cfg = builder.build(builder.plan.find('stage_1_a'), '/s', teacher_checkpoint='a.pth')
        return cfg, builder.comparable(cfg)

    cfg, before = stage()
    assert cfg.default_hooks.ema == dict(
        type='EMAHook', ema_type='mmdmt.EMAModel', momentum=0.999, buffers='ema', warmup=True
    )
    after = stage(ema=dict(momentum=0.5))[1]
    assert {key: after[key] for key in after if after[key] != before[key]} == {
        'ema.momentum': '0.5'
    }


def test_the_keys_of_the_loss_are_those_of_the_classifier():
    own = set(inspect.signature(MutualClassifier.__init__).parameters) - {'self', 'kwargs'}
    assert own == PSEUDO_LOSS_KEYS


@pytest.mark.parametrize(
    'index, change, message',
    [
        (1, dict(labeled=True), r'datasets\[1\]., the unlabeled images, needs .labeled=False.'),
        (0, dict(labeled=False), r'datasets\[0\]., the labeled images, needs .labeled=True.'),
        (1, dict(type='mmpretrain.CustomDataset'), r'must be mmdmt\.ListedDataset, got .mmpret'),
    ],
)
def test_sources_are_what_they_are_used_as(tree, index, change, message):
    cfg = config(tree)
    sources(cfg)[index].update(change)
    with pytest.raises(ValueError, match=message):
        build_stage_config_builder(cfg)
