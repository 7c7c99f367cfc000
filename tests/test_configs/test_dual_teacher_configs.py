"""The configs of Dual Teacher are what their names and the issue say."""

import copy
import functools
import math
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from mmseg.registry import TRANSFORMS as MMSEG_TRANSFORMS

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.models.methods.dual_teacher import SETTINGS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = sorted(path.stem for path in (CONFIGS / 'dual_teacher').glob('*.py'))
NAME = re.compile(
    r'dual-teacher(?P<released>-released)?_(?P<head>[^_]+)_(?P<backbone>[^_]+)_(?P<labels>.+?)'
    r'_(?P<dataset>pascal_voc12|cityscapes|ade20k|camvid|msrc21|folder|toy-scenes)'
    r'-(?P<height>\d+)x(?P<width>\d+)'
)
# Labeled images of ADE20K; 8 of them in a step of two devices.
ADE20K = {'1_32': 631, '1_16': 1263, '1_8': 2526, '1_4': 5052}


@functools.cache
def _load(name):
    return resolve_config(Config.fromfile(CONFIGS / 'dual_teacher' / f'{name}.py'))


def load(name):
    return copy.deepcopy(_load(name)), NAME.fullmatch(name)


def test_the_protocols_of_the_paper_are_there():
    found = {tuple(NAME.fullmatch(name).group('backbone', 'labels', 'dataset')) for name in NAMES}
    voc = ('92', '183', '366', '732', '1464', '1_16', '1_8', '1_4')
    for backbone in ('r50', 'r101'):
        assert {(backbone, labels, 'pascal_voc12') for labels in voc} <= found
        for labels in ('1_16', '1_8', '1_4', '1_2'):
            assert (backbone, labels, 'cityscapes') in found
    for labels in ADE20K:
        assert {('mit-b0', labels, 'ade20k'), ('mit-b1', labels, 'ade20k')} <= found
    assert {(f'mit-b{i}', '1_16', 'ade20k') for i in range(6)} <= found
    assert {dataset for _, _, dataset in found} >= {'msrc21', 'camvid', 'folder'}
    assert 'dual-teacher_deeplabv2_r101_pascal_voc12-321x321' in NAMES


@pytest.mark.parametrize('name', NAMES)
def test_config_is_what_its_name_says(name):
    cfg, parts = load(name)
    segmentor = cfg.model.segmentor
    assert (
        segmentor.decode_head.type
        == {
            'deeplabv2': 'mmdmt.DeepLabV2Head',
            'fcn': 'FCNHead',
            'deeplabv3plus': 'DepthwiseSeparableASPPHead',
            'segformer': 'SegformerHead',
        }[parts['head']]
    )
    if parts['backbone'].startswith('r'):
        assert segmentor.backbone.depth == int(parts['backbone'][1:])
        assert f'resnet{parts["backbone"][1:]}' in segmentor.backbone.init_cfg.checkpoint
    if parts['backbone'].startswith('mit-'):
        assert parts['backbone'].replace('-', '_') in segmentor.backbone.init_cfg.checkpoint
        plain = Config.fromfile(
            CONFIGS / '_base_' / 'models' / f'segformer_{parts["backbone"]}.py'
        ).model
        assert segmentor.backbone.to_dict() == plain.backbone.to_dict()
        assert segmentor.decode_head.in_channels == plain.decode_head.in_channels
    crop = (int(parts['height']), int(parts['width']))
    assert tuple(cfg.model.data_preprocessor.size) == crop


@pytest.mark.parametrize('name', NAMES)
def test_labeled_and_unlabeled_lists_belong_together(name):
    cfg, parts = load(name)
    labeled, unlabeled = cfg.train_dataloader.dataset.datasets
    assert unlabeled.type == 'mmdmt.UnlabeledDataset'
    labels = parts['labels']
    folder = 'splits' if labels in ('labeled', '24') else f'splits/{labels}'
    folder += '/fold_0' if '_' in labels else ''
    assert unlabeled.ann_file == f'{folder}/unlabeled.txt'
    if labels == '1464':
        assert labeled.ann_file == 'ImageSets/Segmentation/train.txt'
    else:
        assert labeled.ann_file == f'{folder}/labeled.txt'
    assert cfg.train_dataloader.sampler.source_ratio == [1, 1]


@pytest.mark.parametrize('name', NAMES)
def test_the_method_is_complete(name):
    cfg, _ = load(name)
    assert cfg.model.type == 'mmdmt.DualTeacher' and 'data_preprocessor' not in cfg.model.segmentor
    assert cfg.model.semi_test_cfg.predict_on == 'student'
    assert set(cfg.model.semi_train_cfg) <= SETTINGS
    assert cfg.model.data_preprocessor.strong.preset == 'dual_teacher'
    assert cfg.val_cfg.type == 'mmdmt.NetworksValLoop'
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks == ['mmdmt.SwitchTeacherHook', 'mmdmt.TeacherUpdateHook', 'mmdmt.CouplingHook']


@pytest.mark.parametrize('name', [name for name in NAMES if 'ade20k' in name])
def test_ade20k_is_trained_as_published(name):
    cfg, parts = load(name)
    steps = 200 * math.ceil(ADE20K[parts['labels']] / 8)
    assert cfg.train_cfg.max_iters == cfg.max_iters == steps
    assert steps % cfg.train_cfg.val_interval == 0
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 1500)
    assert (decay.type, decay.power, decay.begin) == ('PolyLR', 1.0, 1500)
    assert decay.end == (50000 if parts['released'] else steps)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult == 10
    assert cfg.train_dataloader.batch_size == 8  # 4 + 4 on each of two devices
    assert cfg.model.segmentor.backbone.drop_path_rate == 0.1
    for dataset in cfg.train_dataloader.dataset.datasets:
        kinds = [step.type for step in dataset.pipeline]
        assert kinds[-2:] == ['PhotoMetricDistortion', 'mmdmt.PackSemiInputs']


def test_the_released_config_differs_in_the_released_behavior_alone():
    paper, _ = load('dual-teacher_segformer_mit-b1_1_16_ade20k-512x512')
    released, _ = load('dual-teacher-released_segformer_mit-b1_1_16_ade20k-512x512')
    assert released.model.semi_train_cfg.released_behavior is True
    assert 'released_behavior' not in paper.model.semi_train_cfg
    # The paper's way evaluates all of val, the released one the first of two shares.
    assert 'indices' not in paper.val_dataloader.dataset
    assert released.val_dataloader.dataset.indices == list(range(0, 2000, 2))
    changed = {key for key in paper if paper[key] != released[key]}
    assert changed == {'model', 'param_scheduler', 'val_dataloader', 'test_dataloader'}
    del released.model.semi_train_cfg['released_behavior']
    assert released.model == paper.model


def test_the_released_evaluation_resizes_image_and_labels_alike(tmp_path):
    """Whatever the image, both come out with sides that are multiples of 32."""
    import mmcv
    import numpy as np

    cfg, _ = load('dual-teacher-released_segformer_mit-b1_1_16_ade20k-512x512')
    mmcv.imwrite(np.zeros((100, 130, 3), np.uint8), str(tmp_path / 'a.jpg'))
    mmcv.imwrite(np.ones((100, 130), np.uint8), str(tmp_path / 'a.png'))
    results = dict(
        img_path=str(tmp_path / 'a.jpg'),
        seg_map_path=str(tmp_path / 'a.png'),
        seg_fields=[],
        label_map=None,
        reduce_zero_label=True,
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        for step in cfg.val_dataloader.dataset.pipeline:
            registry = TRANSFORMS if step.type.startswith('mmdmt.') else MMSEG_TRANSFORMS
            results = registry.build(step)(results)
    sample = results['data_samples']
    assert tuple(results['inputs'].shape) == (3, 512, 672)
    assert tuple(sample.gt_sem_seg.shape) == (512, 672)
    assert tuple(sample.metainfo['ori_shape']) == (512, 672)


def test_metafile_lists_every_config():
    listed = yaml.safe_load((CONFIGS / 'dual_teacher' / 'metafile.yml').read_text())['Models']
    assert [model['Name'] for model in listed] == NAMES
    for model in listed:
        assert model['Config'] == f'configs/dual_teacher/{model["Name"]}.py'
    index = yaml.safe_load((CONFIGS.parent / 'model-index.yml').read_text())['Import']
    assert 'configs/dual_teacher/metafile.yml' in index
