"""DMT's configs: the published hyper-parameters, and steps that follow from the published sets."""

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
    builder = StageConfigBuilder(load(name))
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
            # A factor of the image's own size: a small one is not enlarged first.
            assert tuple(steps_of['mmdmt.RandomRescale'].ratio_range) == (0.5, 1.5)
            assert 'RandomResize' not in steps_of
            # Padded, then flipped: padding is at the left of half of the crops.
            order = [step.type for step in source.pipeline]
            assert order.index('RandomFlip') == order.index('mmdmt.PadToCrop') + 1
            assert tuple(steps_of['mmdmt.PadToCrop'].size) == (321, 321)
            assert steps_of['mmdmt.PadToCrop'].padding == 'black'
            assert 'PhotoMetricDistortion' not in steps_of  # no color augmentation
        if not first:
            loss = stage.model.pseudo_loss
            assert (loss.type, loss.gamma1, loss.gamma2) == ('mmdmt.DynamicMutualLoss', 5, 5)
    assert cfg.mutual.ratios == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [member.seed for member in cfg.mutual.members] == [1, 2]
    assert cfg.model.decode_head.num_summed == 2
    assert cfg.model.data_preprocessor.test_cfg.size == (505, 505)


# Of round 0 and of a round, by what the scripts give or their parser's default.
INTERVALS = {
    **{VOC.format(k): (v, 500) for k, v in {'1_106': 100, '1_50': 140, '1_20': 220}.items()},
    **{VOC.format(k): (350, 500) for k in ('1_8', '1464')},
    VOC.format('1_50').replace('dmt', 'dmt-ablation', 1): (220, 500),
    **{CITYSCAPES.format(k): (v, 300) for k, v in {'1_30': 100, '1_8': 350}.items()},
    **{DST_CBC_VOC.format(k): (v, 1000) for k, v in {'1_106': 100, '1_4': 500}.items()},
    **{DST_CBC_CITYSCAPES.format(k): (v, 1000) for k, v in {'1_30': 100, '1_8': 350}.items()},
}


@pytest.mark.parametrize('name', INTERVALS)
def test_as_many_checkpoints_to_choose_from_as_published(name):
    for stage_name, stage in stages(name).items():
        first, later = INTERVALS[name]
        expected = first if stage_name.startswith('stage_0') else later
        assert stage.train_cfg.val_interval == expected, stage_name


# The configs between datasets repeat no released script.
PUBLISHED = [
    name for name in DMT if 'deeplabv2' in name and 'gta5' not in name and 'synthia' not in name
]


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_runs_pad_black_and_keep_what_torch_initializes(name):
    for stage in stages(name).values():
        assert stage.model.data_preprocessor.padding == 'black'
        head = stage.model.decode_head
        assert (head.num_summed, head.init_cfg) == (2, None)
        if 'pseudo_labels' in stage.default_hooks:
            assert labeler_of(stage).model.data_preprocessor.padding == 'black'


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
            # And not on the canvas of evaluation, which is there.
            assert 'test_cfg' not in hook.model.data_preprocessor
            assert ('test_cfg' in stage.model.data_preprocessor) == (dataset == 'pascal_voc12')
    assert cfg.mutual.ratios == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert math.ceil((10582 - 530) / 4) * 6 == published_steps('pascal_voc12', '1_20').dst_cbc_round


def test_dst_cbc_scores_cityscapes_at_its_own_size():
    cfg = load(DST_CBC_CITYSCAPES.format('1_8'))
    for section in (cfg.val_dataloader, cfg.test_dataloader):
        steps = section.dataset.pipeline
        assert tuple(steps[0].scale) == (1025, 513)
        assert steps[1].type == 'mmdmt.LoadAnnotationsAtImageSize'


MUTUAL, SELF = 'mmdmt.DynamicMutualLoss', 'mmdmt.DynamicSelfLoss'
BOTH, ONE = ['left', 'right'], ['coco']
FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]
#: By method: members, loss, labeling, ratios, and learning rate and steps of a round. 211 labels
#: leave 10371 images, 1482 batches of 7, 4 passes a round.
ABLATIONS = {
    'dmt-ablation': (BOTH, dict(type=MUTUAL, gamma1=5.0, gamma2=5.0), {}, FIVE, 0.001, 5928),
    'dmt-flip': (
        BOTH, dict(type=MUTUAL, gamma1=5.0, gamma2=5.0, conflict='flip'), {}, FIVE, 0.001, 5928,
    ),
    'naive': (BOTH, dict(type=SELF, gamma=5.0), {}, FIVE, 0.001, 5928),
    'dst': (ONE, dict(type=MUTUAL, gamma1=5.0, gamma2=5.0), {}, FIVE, 0.001, 5928),
    'cbst': (ONE, dict(type=MUTUAL, gamma1=0.0, gamma2=0.0), {}, FIVE, 0.001, 5928),
    'online': (
        ONE, dict(type='mmdmt.OnlinePseudoLoss', threshold=0.9), {}, [1.0], 0.001, 29640,
    ),
    # Not published, in the same setting.
    'dmt-gamma0': (BOTH, dict(type=MUTUAL, gamma1=0.0, gamma2=0.0), {}, FIVE, 0.001, 5928),
    'curriculum': (
        ONE, dict(type=MUTUAL, gamma1=0.0, gamma2=0.0), dict(balance='global'), FIVE, 0.002, 5928,
    ),
}  # fmt: skip


@pytest.mark.parametrize('method', ABLATIONS)
def test_an_ablation_has_the_published_values(method):
    members, loss, labeling, ratios, rate, steps = ABLATIONS[method]
    name = f'{method}_deeplabv2_r101_1_50_pascal_voc12-321x321.py'
    cfg, built = load(name), stages(name)
    assert [member.name for member in cfg.mutual.members] == members
    assert cfg.mutual.ratios == ratios
    for stage_name, stage in built.items():
        round_, member = stage_name.split('_')[1:]
        lists = [source.ann_file for source in stage.train_dataloader.dataset.datasets]
        assert preprocessing(stage.model) == COCO
        if round_ == '0':
            own = 'labeled' if members == ONE else member
            assert lists == [f'splits/1_50/fold_2/{own}.txt']
            assert stage.load_from == 'pretrained/deeplabv2_r101_coco.pth'
            # 134 passes over 168 labels of a subset, or over all 211.
            expected = (0.002, (27 if members == ONE else 21) * 134)
        else:
            assert lists == [f'splits/1_50/fold_2/{kind}labeled.txt' for kind in ('', 'un')]
            assert stage.train_dataloader.sampler.source_ratio == [1, 7]
            assert stage.model.pseudo_loss == loss
            hook = labeler_of(stage)
            found = {key: hook[key] for key in ('rule', 'balance', 'threshold') if key in hook}
            assert found == labeling
            other = {'left': 'right', 'right': 'left'}.get(member, member)
            assert stage.chain.labeled_by == f'stage_{int(round_) - 1}_{other}'
            assert stage.chain.from_scratch == (method == 'curriculum')
            expected = (rate, steps)
        assert (stage.optim_wrapper.optimizer.lr, stage.train_cfg.max_iters) == expected


# Of DST-CBC, on 530 labels of its second fold, all steps of five rounds in one.
@pytest.mark.parametrize(
    'name, options, loss',
    [
        ('dst-cbc-st', {}, dict(type=SELF, gamma=0.0)),
        ('dst-cbc-st', {'mutual.pseudo_loss.gamma': 9.0}, dict(type=SELF, gamma=9.0)),
        ('dst-cbc-ost', {}, dict(type='mmdmt.OnlinePseudoLoss', threshold=0.0)),
    ],
)
def test_an_ablation_of_dst_cbc_has_the_published_values(name, options, loss):
    cfg = read(f'dmt/{name}_deeplabv2_r101_1_20_pascal_voc12-321x321')
    cfg.merge_from_dict(options)
    builder = StageConfigBuilder(resolve_config(cfg))
    first, stage = (builder.build(each, '/w') for each in builder.plan.stages)
    lists = [source.ann_file for source in stage.train_dataloader.dataset.datasets]
    assert lists == [f'splits/1_20/fold_1/{kind}labeled.txt' for kind in ('', 'un')]
    assert (first.train_cfg.max_iters, stage.train_cfg.max_iters) == (67 * 134, 2513 * 30)
    assert stage.model.pseudo_loss == loss
    assert (labeler_of(stage).ratio if 'ratio' in labeler_of(stage) else 1.0) == 1.0
    assert stage.optim_wrapper.optimizer.lr == 0.002


@pytest.mark.parametrize(
    'name, options, steps, lr, evaluation',
    [
        ('pascal_voc12-321x321', {}, 8978, 0.002, None),
        (
            'pascal_voc12-321x321',
            {
                'labeled_list': 'ImageSets/Segmentation/trainaug.txt',
                'mutual.supervised.max_iters': 39690,
                'mutual.supervised.cfg_options': {'train_cfg.val_interval': 500},
            },
            math.ceil(10582 / 8) * 30,
            0.002,
            500,
        ),
        ('cityscapes-256x512', {}, 7990, 0.004, None),
    ],
)
def test_a_published_baseline_is_round_0_from_coco_weights(name, options, steps, lr, evaluation):
    cfg = read(f'dmt/labeled-only_deeplabv2_r101_{name}')
    cfg.merge_from_dict(options)
    cfg = resolve_config(cfg)
    builder = StageConfigBuilder(cfg)
    (only,) = builder.plan.stages
    stage = builder.build(only, '/w')
    assert (stage.train_cfg.max_iters, stage.optim_wrapper.optimizer.lr) == (steps, lr)
    assert stage.train_cfg.val_interval == (evaluation or stage.train_cfg.val_interval)
    assert stage.load_from.startswith('pretrained/deeplabv2_r101_coco')
    assert preprocessing(stage.model) == COCO
    (source,) = stage.train_dataloader.dataset.datasets
    assert source.ann_file == cfg.train_dataloader.dataset.datasets[0].ann_file
    assert stage.train_dataloader.batch_size == 8 and stage.model.decode_head.num_summed == 2
    if 'voc' in name:
        assert stage.model.data_preprocessor.test_cfg.size == (505, 505)
    else:
        assert stage.val_dataloader.dataset.pipeline == PROTOCOLS['cityscapes_half'].pipeline()


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
