"""Configs of online methods: published values, and what released code and ablations change."""

import math

import mmcv
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, DefaultScope
from shipped_configs import load, names_of

import mmdmt  # noqa: F401

MSRC21 = 'deeplabv3plus_mobilenetv2_msrc21-96x96'
ADE = 'dual_teacher/dual-teacher{}_segformer_mit-{}_{}_ade20k-512x512'
# Labeled images of ADE20K; 8 of them in a step of two devices.
ADE20K = {'1_32': 631, '1_16': 1263, '1_8': 2526, '1_4': 5052}


@pytest.mark.parametrize(
    ('network', 'labels'),
    [*(('b1', labels) for labels in ADE20K), *((f'b{size}', '1_16') for size in (0, 2, 3, 4, 5))],
)
def test_dual_teacher_trains_ade20k_as_published(network, labels):
    cfg, steps = load(ADE.format('', network, labels)), 200 * math.ceil(ADE20K[labels] / 8)
    assert cfg.train_cfg.max_iters == steps
    assert steps % cfg.train_cfg.val_interval == 0
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 1500)
    assert (decay.type, decay.power, decay.begin, decay.end) == ('PolyLR', 1.0, 1500, steps)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult == 10
    assert cfg.train_dataloader.batch_size == 8  # 4 + 4 on each of two devices
    assert cfg.model.segmentor.backbone.drop_path_rate == 0.1
    assert (cfg.model.threshold, cfg.model.consistency_weight) == (0.95, 0.2)
    for dataset in cfg.train_dataloader.dataset.datasets:
        kinds = [step.type for step in dataset.pipeline]
        assert kinds[-2:] == ['PhotoMetricDistortion', 'mmdmt.PackSemiInputs']


def test_released_dual_teacher_differs_in_its_type_decay_and_evaluation():
    paper, released = (
        load(ADE.format('', 'b1', '1_16')),
        load(ADE.format('-released', 'b1', '1_16')),
    )
    # The paper's way evaluates all of val, the released one the first of two shares.
    assert 'indices' not in paper.val_dataloader.dataset
    assert released.val_dataloader.dataset.indices == list(range(0, 2000, 2))
    assert released.param_scheduler[-1].end == 50000
    changed = {key for key in paper if paper[key] != released[key]}
    assert changed == {'model', 'param_scheduler', 'val_dataloader', 'test_dataloader'}
    # What it computes is written out: the method would compute the same without these lines.
    own = dict(
        type='mmdmt.ReleasedDualTeacher',
        strong=None,
        sub_model=None,
        restart=True,
        ema=dict(momentum=0.99, mode='train', buffers='keep'),
    )
    assert released.model == dict(paper.model, **own)


def test_the_released_evaluation_resizes_image_and_labels_alike(tmp_path):
    """Whatever the image, both come out with sides that are multiples of 32."""
    cfg = load(ADE.format('-released', 'b1', '1_16'))
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
            results = TRANSFORMS.build(step)(results)
    sample = results['data_samples']
    assert tuple(results['inputs'].shape) == (3, 512, 672)
    assert tuple(sample.gt_sem_seg.shape) == (512, 672)
    assert tuple(sample.metainfo['ori_shape']) == (512, 672)


@pytest.mark.parametrize('name', [name for name in names_of('cross_teacher') if 'city' in name])
def test_cross_teacher_has_the_values_of_the_paper_on_cityscapes(name):
    model = load(name).model
    assert (model.threshold, model.unsup_weight) == (0.968, 1.0)
    assert (model.ema.momentum, model.mix.type) == (0.99, 'mmdmt.ClassMix')
    assert model.mix.get('partner') == ('next' if 'released' in name else None)
    if model.contrast:
        found = model.contrast
        assert (found.high.temperature, found.low.temperature, found.threshold) == (0.1, 0.5, 0.75)
        assert found.bank == dict(size=256, threshold=0.95)
    assert ('released' in name) == (model.contrast is None)


@pytest.mark.parametrize(
    ('kind', 'changed'),
    [
        ('no-contrast', {'contrast': None}),
        ('no-high', {'contrast.high.weight': 0}),
        ('no-low', {'contrast.low.weight': 0}),
        ('own-teacher', {'taught_by': 'own'}),
        ('own-teacher-no-contrast', {'taught_by': 'own', 'contrast': None}),
    ],
)
def test_an_ablation_of_cross_teacher_differs_in_its_point_alone(kind, changed):
    whole = load(f'cross_teacher/cross-teacher_{MSRC21}')
    ablation = load(f'cross_teacher/cross-teacher-{kind}_{MSRC21}')
    assert {key for key in whole if whole[key] != ablation[key]} == {'model'}
    whole.merge_from_dict({f'model.{key}': value for key, value in changed.items()})
    assert whole.model == ablation.model


def test_the_mixed_pair_has_one_optimizer_with_rates_of_its_own():
    cfg = load(
        'cross_teacher/cross-teacher_deeplabv3plus-segformer_r50-mit-b1_pascal_voc12-321x321'
    )
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys['student_l.backbone'].lr_mult == 2.0
    assert keys['norm'].decay_mult == 0.0


@pytest.mark.parametrize(
    ('method', 'preset', 'predict_on'),
    [
        ('mean_teacher', 'unimatch', 'teacher'),
        ('dual_teacher', 'dual_teacher', 'student'),
        ('cross_teacher', 'ctt', 'teacher_average'),
    ],
)
def test_methods_predict_and_augment_as_published(method, preset, predict_on):
    for name in names_of(method):
        model = load(name).model
        if 'dual-teacher-released' not in name:  # a color jitter of its own
            assert model.strong.preset == preset
        assert model.predict_on == ('student_l' if 'cross-teacher-released' in name else predict_on)


def test_u2pl_has_the_values_of_the_paper():
    for name in names_of('u2pl'):
        model = load(name).model
        mix = dict(type='mmdmt.CutMix', prob=0.5, boxes='half', partner='next')
        assert model.mix == mix and model.get('strong') is None
        assert (model.drop_percent, model.normalizer) == (20, 'kept')
        assert model.sup_only == (0 if 'cityscapes' in name else 1 / 80)
        found = model.contrast
        assert (found.weight, found.temperature) == (0.1, 0.5)
        assert (found.anchors_per_class, found.negatives) == (256, 50)
        assert model.ema == dict(momentum=0.99, buffers='keep')
        assert model.predict_on == 'teacher'
