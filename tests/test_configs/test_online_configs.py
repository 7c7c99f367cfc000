"""Configs of online methods: published values, and what released code and ablations change."""

import math

import mmcv
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, DefaultScope
from shipped_configs import load, names_of, read
from tiny_models import tiny_segmentor

import mmdmt  # noqa: F401
from mmdmt.registry import MODELS

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
    model = cfg.model
    assert (model.threshold, model.unsup_weight, model.consistency_weight) == (0.95, 1.0, 0.2)
    assert (model.ema, model.shift_length) == (dict(momentum=0.99), 'epoch')
    for dataset in cfg.train_dataloader.dataset.datasets:
        steps = {step.type: step for step in dataset.pipeline}
        assert list(steps)[-2:] == ['PhotoMetricDistortion', 'mmdmt.PackSemiInputs']
        resize, crop = steps['RandomResize'], steps['RandomCrop']
        assert (tuple(resize.scale), tuple(resize.ratio_range)) == ((2048, 512), (0.5, 2.0))
        assert tuple(crop.crop_size) == (512, 512) and steps['RandomFlip'].prob == 0.5


def test_shifts_of_dual_teacher_are_the_published_ones():
    with DefaultScope.overwrite_default_scope('mmseg'):
        cfg = dict(load(ADE.format('', 'b1', '1_16')).model, segmentor=tiny_segmentor())
        model = MODELS.build(cfg)
    assert model.restart and len(model.teacher_names) == 2
    cut, classes = model.shifts
    assert (type(cut.mix).__name__, type(classes.mix).__name__) == ('CutMix', 'ClassMix')
    assert (cut.mix.prob, cut.mix.partner, classes.mix.partner) == (1.0, 'shuffle', 'shuffle')
    # CutMix of the weak view, then a jitter and a flip; ClassMix of the strong one as it is.
    assert (cut.view, cut.flip_prob, cut.per_image) == ('weak', 0.5, True)
    assert (classes.view, classes.flip_prob, classes.per_image) == ('strong', 0.0, False)
    after = cut.strong
    assert (after.color_jitter, after.jitter_prob, after.gray_prob) == ((0.25,) * 4, 0.8, 0.0)
    assert (after.blur_prob, after.blur_sigma) == (0.5, (0.15, 1.15)) and classes.strong is None
    strong = model.strong
    assert (strong.color_jitter, strong.jitter_prob) == ((0.5, 0.5, 0.5, 0.25), 1.0)
    assert (strong.gray_prob, strong.blur_prob) == (0.2, 0.0)


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


CITY = 'cross_teacher/cross-teacher{}_deeplabv2_r101_{}'


@pytest.mark.parametrize('name', [name for name in names_of('cross_teacher') if 'city' in name])
def test_cross_teacher_has_the_published_values_on_cityscapes(name):
    model = load(name).model
    assert (model.threshold, model.unsup_weight) == (0.968, 1.0)
    assert (model.ema.momentum, model.mix.type) == (0.99, 'mmdmt.ClassMix')
    assert ('released' in name) == (model.contrast is None)
    if model.contrast:
        found = model.contrast
        assert (found.high.temperature, found.low.temperature, found.threshold) == (0.1, 0.5, 0.75)
        assert found.bank == dict(size=256, threshold=0.95)


@pytest.mark.parametrize(
    ('data', 'steps', 'batch', 'crop', 'scaling', 'mix'),
    [
        ('1_8_cityscapes-256x512', 16000, 4, (256, 512), (1.0, 1.0), 'next'),
        ('1_50_pascal_voc12-321x321', 160000, 20, (321, 321), (0.5, 1.6), None),
    ],
)
def test_released_cross_teacher_has_every_released_value(data, steps, batch, crop, scaling, mix):
    cfg = load(CITY.format('-released', data))
    model, optimizer = cfg.model, cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('SGD', 2.5e-4)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys == {'decode_head': {'lr_mult': 10.0}}
    (decay,) = cfg.param_scheduler
    assert (decay.type, decay.power, decay.begin, decay.end) == ('PolyLR', 0.9, 0, steps)
    assert cfg.train_cfg.max_iters == steps
    assert cfg.train_dataloader.sampler == dict(
        type='mmdmt.MultiSourceSampler', batch_size=batch, source_ratio=[1, 1]
    )
    for dataset in cfg.train_dataloader.dataset.datasets:
        kinds = {step.type: step for step in dataset.pipeline}
        assert 'RandomFlip' not in kinds and tuple(kinds['RandomCrop'].crop_size) == crop
        if 'city' in data:  # halved when they are loaded
            assert kinds['mmdmt.LoadImageAtSize'].scale == (1024, 512)
            assert tuple(kinds['RandomResize'].ratio_range) == scaling
        else:  # from their own size: a small image is not enlarged first
            assert tuple(kinds['mmdmt.RandomRescale'].ratio_range) == scaling
            assert 'RandomResize' not in kinds
    assert (model.mix and model.mix.partner) == mix and model.strong.preset == 'ctt_released'
    assert (model.mix_first, model.shared_mix) == (True, False)
    assert model.batch_statistics == 'separate'
    assert model.contrast is None and model.ema == dict(momentum=0.99, mode='train', buffers='keep')
    assert cfg.val_cfg.networks == cfg.test_cfg.networks == ['student_l', 'student_r']
    scored = cfg.val_dataloader.dataset.pipeline
    if 'city' in data:  # images and labels of half size
        assert [s.type for s in scored[:2]] == [
            'mmdmt.LoadImageAtSize',
            'mmdmt.LoadAnnotationsAtImageSize',
        ]
    else:
        assert tuple(model.segmentor.data_preprocessor.test_cfg.size) == (505, 505)


UNIMATCH = '{}_deeplabv3plus_{}_pascal_voc12-321x321'


@pytest.mark.parametrize('network', ['r50', 'r101'])
@pytest.mark.parametrize(
    'method',
    [
        'mean_teacher/mean-teacher',
        'dual_teacher/dual-teacher',
        'cross_teacher/cross-teacher',
        'fixmatch/fixmatch',
        'fixmatch/fixmatch-v2',
    ],
)
def test_online_methods_share_the_protocol_of_voc(method, network):
    name = UNIMATCH.format(method, network)
    if name not in names_of(method.split('/')[0]):
        assert network == 'r101'
        return
    cfg = load(name)
    assert cfg.train_cfg.max_iters == 80 * 1157  # passes over 9260 unlabeled images, 8 in a step
    (decay,) = cfg.param_scheduler
    assert (decay.type, decay.power, decay.begin, decay.end) == ('PolyLR', 0.9, 0, 92560)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('SGD', 0.001)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys == {'head': {'lr_mult': 10.0}}
    assert (cfg.train_dataloader.batch_size, cfg.train_dataloader.sampler.source_ratio) == (
        16,
        [1, 1],
    )
    assert read(name).unimatch_iters == {
        '92': 104880,
        '183': 103920,
        '366': 102160,
        '732': 98480,
        '1464': 91120,
        '662': 99200,
        '1323': 92560,
        '2646': 79360,
        '5291': 52880,
    }


def test_dual_teachers_are_temporary_and_take_turns_by_epochs_where_labels_are_many():
    """As published; a pass over few labels is too short a shift, as docs/dual_teacher.md says."""
    few = ('camvid', 'folder', 'msrc21', 'toy-scenes')
    for name in names_of('dual_teacher'):
        model = load(name).model
        assert 'restart' not in model and model.get('num_teachers', 2) == 2
        numbers = any(data in name for data in few)
        assert isinstance(model.shift_length, int) if numbers else model.shift_length == 'epoch'
    with DefaultScope.overwrite_default_scope('mmseg'):
        assert MODELS.build(dict(load(name).model, segmentor=tiny_segmentor())).restart


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
            assert model.strong.preset == preset + '_released' * ('released' in name)
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


def test_augseg_has_the_values_of_the_paper():
    for name in names_of('augseg'):
        model = load(name).model
        assert model.mix == dict(type='mmdmt.AdaptiveCutMix')
        assert model.strong == dict(type='mmdmt.RandomIntensityAugment')
        assert (model.normalizer, model.predict_on) == ('all', 'teacher')
        assert (model.sup_weight, model.unsup_weight) == (1, 1)
        assert model.threshold == (0 if 'cityscapes' in name else 0.95)
        assert model.ema == dict(momentum=0.999 if 'voc' in name else 0.996)
        assert model.extra_weak == ('r50_pascal_voc12' in name)
        assert 'copy_iters' not in model, 'the first pass'


def test_prevmatch_is_unimatch_with_the_published_copies():
    for name in names_of('prevmatch'):
        model = load(name).model
        everywhere = 'cityscapes' in name
        assert (model.type, model.mix) == ('mmdmt.UniMatch', dict(type='mmdmt.CutMix'))
        assert model.threshold == (0 if everywhere else 0.95)
        assert (model.feature_dropout, model.feature_share) == (0.5, 0.5)
        found = model.previous
        assert found.threshold == (0 if everywhere else 0.9)
        assert (found.every, found.max_labelers, found.device) == ('epoch', 3, 'cpu')
        many = 'coco' in name or 'ade' in name
        assert (found.keep, found.skip > 0) == ((5, True) if many else (8, False))
