"""DMT's configs: the published hyper-parameters, and steps that follow from the published sets."""

import copy
import functools
import math

import pytest
from mmengine.config import Config
from shipped_configs import CONFIGS, read
from shipped_configs import load as load_shipped

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.datasets.splits.draws import difference_maximized_subsets, published_size
from mmdmt.engine.mutual import StageConfigBuilder
from mmdmt.protocols import PROTOCOLS

DMT = sorted(path.name for path in (CONFIGS / 'dmt').glob('*.py'))
VOC = 'dmt_deeplabv2_r101_{}_pascal_voc12-321x321.py'
CITYSCAPES = 'dmt_deeplabv2_r101_{}_cityscapes-256x512.py'
DST_CBC_VOC = 'dst-cbc_deeplabv2_r101_{}_pascal_voc12-321x321.py'
DST_CBC_CITYSCAPES = 'dst-cbc_deeplabv2_r101_{}_cityscapes-257x513.py'
NETWORKS = [
    f'dmt_{network}_1_8_{data}-{crop}.py'
    for network, crops in {
        'deeplabv3plus_r50': ('321x321', '801x801'),
        'segformer_mit-b1': ('512x512', '1024x1024'),
    }.items()
    for data, crop in zip(('pascal_voc12', 'cityscapes', 'ade20k'), (*crops, '512x512'))
]
COCO = dict(mean=[104.008, 116.669, 122.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def load(name):
    return load_shipped(f'dmt/{name[: -len(".py")]}')


def published_steps(dataset, labels):
    """Steps by kind of stage, from the file that derives them."""
    return read('_base_/methods/dmt_published').published_steps[dataset][labels]


@functools.cache
def stages(name):
    """Configs of round 0 and of the first and last round, by stage name."""
    builder = StageConfigBuilder(copy.deepcopy(load(name)))
    last = len(builder.plan.ratios)
    return {
        stage.name: builder.build(stage, f'/work_dir/{stage.name}', teacher_checkpoint='/t.pth')
        for stage in builder.plan.stages
        if stage.round in (0, 1, last)
    }


def labeler_of(stage):
    return stage.default_hooks.pseudo_labels.labeler


def preprocessing(model):
    return {key: model.data_preprocessor[key] for key in COCO}


def crop_of(pipeline):
    return next(tuple(step.crop_size) for step in pipeline if step.type == 'RandomCrop')


# ---------------------------------------------------------------- the table


def test_steps_are_passes_over_the_published_sets():
    """Written out once more from the sizes of the lists that were published."""
    steps = read('_base_/methods/dmt_published').published_steps
    voc, city = steps.pascal_voc12, steps.cityscapes
    # 530 labels in batches of 8: 67 steps a pass, 134 passes. 10052 others, 7 a step, 4 passes.
    assert voc['1_20'].supervised == 67 * 134 == 8978
    assert voc['1_20'].dmt_round == 1436 * 4 == 5744
    assert voc['1_20'].dst_cbc_round == 2513 * 6
    assert voc['1_8'].supervised == math.ceil(1322 / 8) * 85
    assert voc['1_8'].dmt_round == math.ceil(9260 / 7) * 4
    # 80 of 100 labels in each of the two subsets, 168 of 211.
    assert voc['1_106'].subset == 10 * 300
    assert voc['1_106'].dmt_round == math.ceil(10482 / 7) * 4
    assert voc['1_50'].subset == 21 * 212
    assert voc['1464'].dmt_round == math.ceil(9118 / 7) * 5
    assert city['1_30'].supervised == 13 * 330
    assert city['1_30'].dmt_round == math.ceil(2875 / 6) * 10
    assert city['1_8'].supervised == 47 * 170
    assert city['1_8'].dmt_round == 434 * 10 == 4340


def test_the_table_has_the_sizes_that_the_split_tool_draws():
    sets = read('_base_/methods/dmt_published').published_sets
    for dataset in sets.values():
        for labels, values in dataset.items():
            divisor = {'1_106': 105.82, '1_30': 29.75}.get(labels)
            if '_' in labels:
                divisor = divisor or int(labels.split('_')[1])
                assert published_size(values.images, divisor) == values.labeled, labels
    left, right = difference_maximized_subsets([str(i) for i in range(211)])
    assert len(left) == len(right) == 168


# ---------------------------------------------------------------- as published


@pytest.mark.parametrize('labels', ['1_106', '1_50', '1_20', '1_8', '1464'])
def test_published_voc(labels):
    cfg, built = load(VOC.format(labels)), stages(VOC.format(labels))
    steps = published_steps('pascal_voc12', labels)
    few = labels in ('1_106', '1_50')
    for name, stage in built.items():
        first = name.startswith('stage_0')
        optimizer = stage.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.9, 5e-4)
        assert optimizer.lr == (0.002 if first else 0.001)
        assert not stage.optim_wrapper.get('paramwise_cfg')  # one rate for backbone and head
        assert [(s.type, s.power, s.eta_min) for s in stage.param_scheduler] == [('PolyLR', 0.9, 0)]
        expected = (steps.subset if few else steps.supervised) if first else steps.dmt_round
        assert stage.train_cfg.max_iters == stage.param_scheduler[0].end == expected
        assert stage.train_dataloader.batch_size == 8
        assert stage.train_dataloader.sampler.source_ratio == ([1] if first else [1, 7])
        for source in stage.train_dataloader.dataset.datasets:
            steps_of = {step.type: step for step in source.pipeline}
            assert crop_of(source.pipeline) == (321, 321)
            assert tuple(steps_of['RandomResize'].ratio_range) == (0.5, 1.5)
            assert 'PhotoMetricDistortion' not in steps_of  # no color augmentation
        if not first:
            loss = stage.model.pseudo_loss
            assert (loss.type, loss.gamma1, loss.gamma2) == ('mmdmt.DynamicMutualLoss', 5, 5)
    assert cfg.mutual.ratios == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [member.seed for member in cfg.mutual.members] == [1, 2]
    assert cfg.model.decode_head.num_summed == 2
    assert 100 <= cfg.train_cfg.val_interval <= 500
    assert cfg.model.data_preprocessor.test_cfg.size == (505, 505)


@pytest.mark.parametrize('labels, folder', [('1_106', '1_105.82'), ('1_50', '1_50')])
def test_few_labels_two_subsets_and_coco_weights_for_both(labels, folder):
    built = stages(VOC.format(labels))
    for side in ('left', 'right'):
        first, later = built[f'stage_0_{side}'], built[f'stage_1_{side}']
        lists = [s.train_dataloader.dataset.datasets[0].ann_file for s in (first, later)]
        assert lists == [f'splits/{folder}/fold_0/{name}.txt' for name in (side, 'labeled')]
        unlabeled = later.train_dataloader.dataset.datasets[1].ann_file
        assert unlabeled == f'splits/{folder}/fold_0/unlabeled.txt'
    for stage in built.values():
        assert preprocessing(stage.model) == COCO
        assert stage.model.backbone.init_cfg is None


@pytest.mark.parametrize(
    'name', [VOC.format(x) for x in ('1_20', '1_8', '1464')] + [CITYSCAPES.format('1_8')]
)
def test_one_member_from_coco_and_one_from_imagenet_with_their_own_preprocessing(name):
    built, members = stages(name), load(name).mutual.members
    for round_ in (0, 1, 5):
        coco, imagenet = built[f'stage_{round_}_coco'], built[f'stage_{round_}_imagenet']
        assert preprocessing(coco.model) == COCO
        assert preprocessing(imagenet.model) == IMAGENET
        assert imagenet.model.backbone.init_cfg.checkpoint == 'torchvision://resnet101'
    # The network that labels is fed as it was trained.
    hook = labeler_of(built['stage_1_imagenet'])
    assert preprocessing(hook.model) == COCO
    assert preprocessing(labeler_of(built['stage_1_coco']).model) == IMAGENET
    assert [member.get('load_from', '')[:11] for member in members] == ['pretrained/', '']


@pytest.mark.parametrize('labels, folder', [('1_30', '1_29.75'), ('1_8', '1_8')])
def test_published_cityscapes(labels, folder):
    cfg, built = load(CITYSCAPES.format(labels)), stages(CITYSCAPES.format(labels))
    steps = published_steps('cityscapes', labels)
    for name, stage in built.items():
        first = name.startswith('stage_0')
        assert stage.optim_wrapper.optimizer.lr == 0.004
        assert stage.train_cfg.max_iters == (steps.supervised if first else steps.dmt_round)
        assert stage.train_dataloader.batch_size == 8
        assert stage.train_dataloader.sampler.source_ratio == ([1] if first else [2, 6])
        for index, source in enumerate(stage.train_dataloader.dataset.datasets):
            assert source.pipeline[0].type == 'mmdmt.LoadImageAtSize'
            assert tuple(source.pipeline[0].scale) == (1024, 512)
            assert crop_of(source.pipeline) == (256, 512)
            assert source.ann_file.startswith(f'splits/{folder}/fold_0/')
            if index:
                assert source.pipeline[1].type == 'mmdmt.LoadPseudoLabels'
        if not first:
            assert (stage.model.pseudo_loss.gamma1, stage.model.pseudo_loss.gamma2) == (3, 3)
            labeling = labeler_of(stage).dataset.pipeline
            assert [step.type for step in labeling] == ['mmdmt.LoadImageAtSize', 'PackSegInputs']
    assert cfg.model.decode_head.num_classes == 19
    assert tuple(cfg.model.data_preprocessor.size) == (256, 512)
    # Written out in the dataset's file, and the protocol of that name gives the same.
    written = cfg.val_dataloader.dataset.pipeline
    assert written == PROTOCOLS['cityscapes_half'].pipeline()


def test_half_size_cityscapes_can_be_scored_at_full_size_without_changing_its_labels():
    cfg = Config.fromfile(CONFIGS / 'dmt' / CITYSCAPES.format('1_8'))
    cfg.evaluation_protocol = 'cityscapes_half_input'
    builder = StageConfigBuilder(resolve_config(cfg))
    stage = builder.build(builder.plan.find('1.coco'), '/w', teacher_checkpoint='/t.pth')
    assert [step.type for step in stage.val_dataloader.dataset.pipeline][:2] == [
        'LoadImageFromFile',
        'Resize',
    ]
    before = stages(CITYSCAPES.format('1_8'))['stage_1_coco']
    assert labeler_of(stage).dataset == labeler_of(before).dataset


# ---------------------------------------------------------------- DST-CBC and ablations


@pytest.mark.parametrize(
    'name, dataset, labels, gamma',
    [
        *((DST_CBC_VOC, 'pascal_voc12', x, 9) for x in ('1_106', '1_50', '1_20', '1_8', '1_4')),
        *((DST_CBC_CITYSCAPES, 'cityscapes', x, 5) for x in ('1_30', '1_8', '1_4')),
    ],
)
def test_published_dst_cbc(name, dataset, labels, gamma):
    cfg, built = load(name.format(labels)), stages(name.format(labels))
    steps = published_steps(dataset, labels)
    assert sorted(built) == ['stage_0_coco', 'stage_1_coco', 'stage_5_coco']
    crop = (321, 321) if dataset == 'pascal_voc12' else (257, 513)
    test = (505, 505) if dataset == 'pascal_voc12' else (513, 1025)
    for stage_name, stage in built.items():
        first = stage_name.startswith('stage_0')
        assert stage.optim_wrapper.optimizer.lr == 0.002
        assert stage.train_cfg.max_iters == (steps.supervised if first else steps.dst_cbc_round)
        assert stage.train_dataloader.batch_size == 8
        assert stage.train_dataloader.sampler.source_ratio == ([1] if first else [4, 4])
        assert preprocessing(stage.model) == COCO
        for source in stage.train_dataloader.dataset.datasets:
            resize = next(step for step in source.pipeline if step.type == 'RandomResize')
            # Width and height are drawn by themselves, between crop and test size.
            assert [tuple(size)[::-1] for size in resize.scale] == [crop, test]
            assert resize.keep_ratio is False
            assert crop_of(source.pipeline) == crop
        if not first:
            assert stage.model.pseudo_loss == dict(type='mmdmt.DynamicSelfLoss', gamma=gamma)
            hook = labeler_of(stage)
            assert hook.rule == 'threshold_ratio'
            resize = next(step for step in hook.dataset.pipeline if step.type == 'Resize')
            assert tuple(resize.scale)[::-1] == crop  # labels are made at the training size
    assert cfg.mutual.ratios == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert math.ceil((10582 - 530) / 4) * 6 == published_steps('pascal_voc12', '1_20').dst_cbc_round


def test_dst_cbc_scores_cityscapes_at_its_own_size():
    cfg = load(DST_CBC_CITYSCAPES.format('1_8'))
    for section in (cfg.val_dataloader, cfg.test_dataloader):
        steps = section.dataset.pipeline
        assert tuple(steps[0].scale) == (1025, 513)
        assert steps[1].type == 'mmdmt.LoadAnnotationsAtImageSize'


@pytest.mark.parametrize(
    'method, members, loss, labeling',
    [
        ('dmt-flip', 2, dict(gamma1=5.0, gamma2=5.0, conflict='flip'), {}),
        ('dmt-gamma0', 2, dict(gamma1=0.0, gamma2=0.0), {}),
        ('cbst', 1, dict(gamma1=0.0, gamma2=0.0), dict(rule='threshold_ratio')),
        ('naive', 1, dict(gamma1=0.0, gamma2=0.0), dict(threshold=0.9)),
        ('curriculum', 1, dict(gamma1=0.0, gamma2=0.0), dict(balance='global')),
        ('online', 1, dict(threshold=0.9), {}),
    ],
)
def test_an_ablation_differs_in_what_its_name_says(method, members, loss, labeling):
    name = f'{method}_deeplabv2_r101_1_20_pascal_voc12-321x321.py'
    cfg, built = load(name), stages(name)
    reference = load(VOC.format('1_20'))
    stage = built['stage_1_coco']
    kinds = {'online': 'mmdmt.OnlinePseudoLoss'}
    assert stage.model.pseudo_loss == dict(
        type=kinds.get(method, 'mmdmt.DynamicMutualLoss'), **loss
    )
    assert len(cfg.mutual.members) == members
    hook = labeler_of(stage)
    found = {key: hook[key] for key in ('rule', 'balance', 'threshold') if key in hook}
    assert found == labeling
    total = sum(stage.train_cfg.max_iters for stage in built.values() if 'coco' in stage.work_dir)
    rounds = {'online': 1}.get(method, 2)  # round 1 and the last one
    per_round = cfg.mutual.round.max_iters
    assert total == cfg.mutual.supervised.max_iters + rounds * per_round
    assert len(cfg.mutual.ratios) * per_round == 5 * reference.mutual.round.max_iters
    assert cfg.train_dataloader == reference.train_dataloader
    starts_afresh = cfg.mutual.round.get('from_scratch', False)
    assert starts_afresh == (method == 'curriculum')
    if starts_afresh:
        assert stage.load_from == 'pretrained/deeplabv2_r101_coco.pth'


# ---------------------------------------------------------------- other networks


@pytest.mark.parametrize('name', NETWORKS)
def test_a_member_takes_as_many_steps_as_the_baseline(name):
    cfg, built = load(name), stages(name)
    baseline = load_shipped('supervised/' + name[len('dmt_') : -len('.py')].replace('_1_8_', '_'))
    mutual = cfg.mutual
    total = mutual.supervised.max_iters + len(mutual.ratios) * mutual.round.max_iters
    assert total == baseline.train_cfg.max_iters
    assert cfg.model.backbone == baseline.model.backbone
    assert cfg.model.decode_head == baseline.model.decode_head
    for stage in built.values():
        assert stage.param_scheduler[-1].end == stage.train_cfg.max_iters
        assert all(s.begin < s.end for s in stage.param_scheduler)
        ratio = stage.train_dataloader.sampler.source_ratio
        assert stage.train_dataloader.batch_size % sum(ratio) == 0
    slides = 'cityscapes' in name
    assert (cfg.model.test_cfg.mode == 'slide') == slides
    assert cfg.model.test_cfg == baseline.model.test_cfg
    assert cfg.val_dataloader == baseline.val_dataloader


def test_a_cnn_and_a_transformer_keep_their_network_and_optimizer_in_every_round():
    name = 'dmt_deeplabv3plus-segformer_r50-mit-b1_1_8_pascal_voc12-321x321.py'
    for stage_name, stage in stages(name).items():
        transformer = stage_name.endswith('segformer')
        kinds = ['ResNetV1c', 'MixVisionTransformer']
        assert stage.model.backbone.type == kinds[transformer]
        assert ('depth' in stage.model.backbone) != transformer
        assert stage.optim_wrapper.optimizer.type == ('AdamW' if transformer else 'SGD')
        assert ('momentum' in stage.optim_wrapper.optimizer) != transformer
        if not stage_name.startswith('stage_0'):
            assert labeler_of(stage).model.backbone.type == kinds[not transformer]
