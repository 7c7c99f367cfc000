import pytest
from mmengine.config import Config
from tiny_models import tiny_segformer, tiny_segmentor

from mmdmt.engine.mutual.stage_config import StageConfigBuilder


def base_config(**mutual):
    labeled = dict(type='BaseSegDataset', ann_file='labeled.txt', pipeline=[dict(type='Load')])
    unlabeled = dict(
        type='mmdmt.UnlabeledDataset',
        ann_file='unlabeled.txt',
        data_root='/somewhere',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)],
    )
    test = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='Pack')]
    mutual.setdefault('members', [dict(name='c'), dict(name='i')])
    mutual.setdefault('ratios', [0.2, 1.0])
    return Config(
        dict(
            model=tiny_segmentor(),
            train_dataloader=dict(
                batch_size=8,
                num_workers=2,
                sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=8, source_ratio=[1, 1]),
                dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled, unlabeled]),
            ),
            test_dataloader=dict(dataset=dict(type='BaseSegDataset', pipeline=test)),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.002)),
            param_scheduler=[
                dict(type='LinearLR', begin=0, end=10, by_epoch=False),
                dict(type='PolyLR', begin=10, end=1000, by_epoch=False),
            ],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=500),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook')),
            randomness=dict(seed=3, deterministic=True),
            mutual=mutual,
        )
    )


def build(name, cfg=None, **kwargs):
    builder = StageConfigBuilder(cfg or base_config())
    stage = builder.plan.find(name)
    return builder.build(stage, f'/work_dir/{stage.name}', **kwargs)


def labeler_of(cfg):
    return cfg.default_hooks.pseudo_labels.labeler


def test_round_0_trains_a_plain_segmentor_on_the_labeled_source():
    cfg = build('stage_0_c')
    assert cfg.model.type == 'EncoderDecoder'
    assert [d.ann_file for d in cfg.train_dataloader.dataset.datasets] == ['labeled.txt']
    assert cfg.train_dataloader.sampler.source_ratio == [1]
    assert 'pseudo_labels' not in cfg.default_hooks
    assert 'mutual' not in cfg and cfg.runner_type == 'mmdmt.SemiRunner'


def test_a_round_trains_on_labels_of_the_other_member():
    mutual = dict(
        round=dict(max_iters=40, lr=0.001, batch_size=16, source_ratio=[1, 7]),
        labeling=dict(pixel_stride=4),
    )
    cfg = build(
        'stage_2_c', base_config(**mutual), load_from='own.pth', teacher_checkpoint='peer.pth'
    )
    assert cfg.model.type == 'mmdmt.PseudoLabelSegmentor'
    assert cfg.load_from == 'own.pth'
    hook = cfg.default_hooks.pseudo_labels
    assert (hook.type, hook.checkpoint, hook.ratio) == ('mmdmt.PseudoLabelHook', 'peer.pth', 1.0)
    labeler = hook.labeler
    assert labeler.pixel_stride == 4 and labeler.model.type == 'EncoderDecoder'
    assert [t.type for t in labeler.dataset.pipeline] == ['LoadImageFromFile', 'Pack']
    labeled, pseudo = cfg.train_dataloader.dataset.datasets
    load = pseudo.pipeline[1]
    assert (load.type, load.store_dir) == ('mmdmt.LoadPseudoLabels', labeler.store)
    assert [t.type for t in labeled.pipeline] == ['Load']
    loader = cfg.train_dataloader
    assert loader.sampler.source_ratio == [1, 7]
    assert loader.batch_size == loader.sampler.batch_size == 16


def test_a_round_needs_pseudo_labeled_images_in_its_batches():
    """Configs of labeled-only training have both sources, at the ratio [1, 0]."""
    cfg = base_config(round=dict(source_ratio=[2, 6]))
    cfg.train_dataloader.sampler.source_ratio = [1, 0]
    assert build('stage_0_c', cfg).train_dataloader.sampler.source_ratio == [1]
    assert build('stage_1_c', cfg).train_dataloader.sampler.source_ratio == [2, 6]
    cfg.mutual.pop('round')
    with pytest.raises(ValueError, match=r'`mutual\.round\.source_ratio` .*not \[1, 0\]'):
        StageConfigBuilder(cfg)


def test_length_and_learning_rate_of_a_round_reach_the_schedule():
    mutual = dict(supervised=dict(max_iters=300), round=dict(max_iters=40, lr=0.001))
    cfg = base_config(**mutual)
    first, later = build('stage_0_c', cfg), build('stage_1_c', cfg)
    assert first.train_cfg.max_iters == 300 and first.optim_wrapper.optimizer.lr == 0.002
    assert [s.end for s in first.param_scheduler] == [10, 300]
    assert later.train_cfg.max_iters == later.train_cfg.val_interval == 40
    assert [s.end for s in later.param_scheduler] == [10, 40]
    assert later.optim_wrapper.optimizer.lr == 0.001
    assert cfg.train_cfg.max_iters == 1000, 'the config was edited'


def test_members_differ_by_seed_list_and_options():
    members = [
        dict(name='l', seed=1, labeled_list='left.txt'),
        dict(name='r', seed=2, cfg_options={'model.decode_head.dropout_ratio': 0.3}),
    ]
    cfg = base_config(members=members)
    left, right = build('stage_0_l', cfg), build('stage_0_r', cfg)
    assert left.randomness.seed == 3 + 1 and right.randomness.seed == 3 + 2
    assert left.randomness.deterministic
    assert left.train_dataloader.dataset.datasets[0].ann_file == 'left.txt'
    assert right.train_dataloader.dataset.datasets[0].ann_file == 'labeled.txt'
    assert right.model.decode_head.dropout_ratio == 0.3
    # The subsets are for round 0: later rounds learn from all labels, as published.
    later = build('stage_1_l', cfg)
    assert later.train_dataloader.dataset.datasets[0].ann_file == 'labeled.txt'
    assert labeler_of(later).model.decode_head.dropout_ratio == 0.3


def test_seeds_differ_between_members_and_rounds():
    seeds = [build(f'stage_{r}_{m}').randomness.seed for r in range(3) for m in 'ci']
    assert len(set(seeds)) == 6


def test_the_seed_of_the_run_shifts_the_seeds_of_all_members():
    cfg = base_config(members=[dict(name='c', seed=5), dict(name='i')])
    cfg.randomness.seed = 100
    assert [build(f'stage_0_{m}', cfg).randomness.seed for m in 'ci'] == [105, 101]
    cfg.randomness.seed = None
    assert [build(f'stage_0_{m}', cfg).randomness.seed for m in 'ci'] == [5, 1]


def test_each_round_may_have_its_own_length():
    cfg = base_config(round=dict(max_iters=[40, 80]))
    lengths = [build(f'stage_{r}_c', cfg).train_cfg.max_iters for r in range(3)]
    assert lengths == [1000, 40, 80]


def test_an_unlabeled_source_may_consist_of_several_folders():
    cfg = base_config()
    one = cfg.train_dataloader.dataset.datasets[1]
    more = dict(one, data_root='/more')
    cfg.train_dataloader.dataset.datasets[1] = dict(type='ConcatDataset', datasets=[one, more])
    stage = build('stage_1_c', cfg)
    for part in stage.train_dataloader.dataset.datasets[1].datasets:
        assert part.pipeline[1].type == 'mmdmt.LoadPseudoLabels'
    parts = labeler_of(stage).dataset.datasets
    assert [part.data_root for part in parts] == ['/somewhere', '/more']
    assert all([s.type for s in part.pipeline] == ['LoadImageFromFile', 'Pack'] for part in parts)


def test_labeling_loads_no_masks_of_any_kind():
    cfg = base_config()
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='mmdmt.LoadAnnotationsAtImageSize')
    pipeline = labeler_of(build('stage_1_c', cfg)).dataset.pipeline
    assert [step.type for step in pipeline] == ['LoadImageFromFile', 'Pack']


def test_without_a_test_set_images_are_labeled_as_they_are_validated():
    cfg = base_config()
    cfg.val_dataloader = cfg.pop('test_dataloader')
    assert labeler_of(build('stage_1_c', cfg)).dataset.pipeline[-1].type == 'Pack'
    cfg.pop('val_dataloader')
    with pytest.raises(ValueError, match=r'mutual\.labeling\.pipeline'):
        build('stage_1_c', cfg)


def test_a_warm_up_that_is_longer_than_a_stage_is_shortened():
    cfg = base_config(supervised=dict(max_iters=100))
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 500
    spans = [(each.begin, each.end) for each in build('stage_0_c', cfg).param_scheduler]
    assert spans == [(0, 50), (50, 100)]


@pytest.mark.parametrize('schedulers', [None, dict(type='PolyLR', begin=0, end=1000)])
def test_there_may_be_one_scheduler_or_none(schedulers):
    cfg = base_config(round=dict(max_iters=40))
    cfg.pop('param_scheduler')
    if schedulers:
        cfg.param_scheduler = schedulers
    stage = build('stage_1_c', cfg)
    assert stage.get('param_scheduler', {}).get('end') == (40 if schedulers else None)


def test_from_scratch_starts_as_round_0_did():
    cfg = build('stage_1_c', base_config(round=dict(from_scratch=True)), load_from='own.pth')
    assert cfg.load_from is None
    members = [dict(name='c', load_from='coco.pth'), dict(name='i')]
    mutual = dict(round=dict(from_scratch=True), members=members)
    cfg = build('stage_1_c', base_config(**mutual), load_from='own.pth')
    assert cfg.load_from == 'coco.pth'


def test_members_are_labeled_by_the_others_network_preprocessing_and_pipeline():
    other = tiny_segformer()
    other['data_preprocessor'] = dict(type='SegDataPreProcessor', mean=[104.0, 117.0, 123.0])
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64))]
    options = {'model': dict(_delete_=True, **other), 'test_dataloader.dataset.pipeline': pipeline}
    cfg = base_config(members=[dict(name='c'), dict(name='i', cfg_options=options)])
    first, second = build('stage_1_c', cfg), build('stage_1_i', cfg)
    assert first.model.backbone.type == labeler_of(second).model.backbone.type == 'ResNet'
    assert second.model.backbone.type == 'MixVisionTransformer'
    labeler = labeler_of(first)
    assert labeler.model.backbone.type == 'MixVisionTransformer'
    assert labeler.model.data_preprocessor.mean == [104.0, 117.0, 123.0]
    assert [step.type for step in labeler.dataset.pipeline] == ['LoadImageFromFile', 'Resize']


def test_a_setting_that_a_member_changes_reaches_all_its_places():
    cfg = base_config(
        members=[dict(name='c'), dict(name='i', cfg_options=dict(crop_size=(48, 48)))]
    )
    cfg.crop_size = (24, 24)
    sets = ['model.data_preprocessor.size']
    cfg.settings = dict(crop_size=dict(default=(24, 24), sets=sets))
    cfg.model.data_preprocessor.size = (24, 24)
    assert build('stage_0_c', cfg).model.data_preprocessor.size == (24, 24)
    assert build('stage_0_i', cfg).model.data_preprocessor.size == (48, 48)


def test_every_labeling_setting_reaches_the_hook_and_the_ledger():
    labeling = dict(rule='threshold_ratio', balance='global', amp=True, tta=dict(flip=True), bins=9)
    cfg = base_config(labeling=labeling)
    builder = StageConfigBuilder(cfg)
    stage = build('stage_1_c', cfg)
    flat = builder.comparable(stage)
    for key, value in labeling.items():
        assert labeler_of(stage)[key] == value
        assert any(name.startswith(f'labeling.{key}') for name in flat)


@pytest.mark.parametrize(
    ('select', 'rules'),
    [('best', ['best'] * 3), (['last', 'best', 'best_so_far'], ['last', 'best', 'best_so_far'])],
)
def test_each_round_keeps_its_best_if_its_rule_asks_for_it(select, rules):
    cfg = base_config(select=select)
    builder = StageConfigBuilder(cfg)
    for index, rule in enumerate(rules):
        assert builder.select_of(builder.plan.find(f'stage_{index}_c')) == rule
        saved = build(f'stage_{index}_c', cfg).default_hooks.checkpoint.get('save_best')
        assert saved == (None if rule == 'last' else 'mIoU')


def test_the_ledger_compares_what_decides_the_outcome():
    def flat(change=None, work_dir='/a'):
        cfg = base_config()
        cfg.merge_from_dict(change or {})
        builder = StageConfigBuilder(cfg)
        stage = builder.plan.find('stage_1_c')
        return builder.comparable(builder.build(stage, work_dir, 'x.pth', f'{work_dir}/y.pth'))

    assert flat() == flat(work_dir='/b') == flat({'train_dataloader.num_workers': 0})
    changed = flat({'optim_wrapper.optimizer.lr': 0.1})
    assert {k for k in changed if changed[k] != flat()[k]} == {'optim_wrapper.optimizer.lr'}
    changed = flat({'mutual.ratios': [0.3, 1.0]})
    assert {k for k in changed if changed[k] != flat()[k]} == {'labeling.ratio'}
    changed = flat({'mutual.select': 'best'})
    assert {k for k in changed if changed[k] != flat()[k]} == {'chain.select'}
    changed = flat({'mutual.round': dict(from_scratch=True), 'load_from': '/any/coco.pth'})
    assert changed['chain.from_scratch'] == 'True'
    assert changed['chain.initial_checkpoint'] == 'coco.pth'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(mutual=dict(ratios=[0.5])), r'mutual\.members'),
        (dict(mutual=dict(members=[{}], ratios=[0.5], select='first')), "'first'"),
        (dict(mutual=dict(members=[{}], ratios=[0.5], rounds=5)), 'rounds'),
        (dict(mutual=dict(members=[{}], ratios=[1], select=['last', 'first'])), 'first'),
        (dict(mutual=dict(members=[{}], ratios=[1], select=['last'])), '1 rules: it needs 2'),
        (dict(mutual=dict(members=[{}], ratios=[1], labeling=dict(rule='any'))), "'any'"),
        (dict(mutual=dict(members=[{}], ratios=[1], labeling=dict(threshold=90))), '90'),
        (
            dict(mutual=dict(members=[{}], ratios=[1], labeling=dict(tta=dict(x=1)))),
            r'labeling\.tta',
        ),
        (dict(mutual=dict(members=[{}], ratios=[1], ensemble=dict(mean=True))), r'\.ensemble'),
        (dict(mutual=dict(members=[{}], ratios=[1], round=dict(iters=5))), 'iters'),
        (dict(mutual=dict(members=[{}], ratios=[1], round=dict(max_iters=[5, 6]))), '2 numbers'),
        (dict(mutual=dict(members=2, ratios=[1])), 'list of dicts'),
        (
            dict(mutual=dict(members=[{}], ratios=[1], labeling=dict(pixel_stride=0))),
            r'labeling\.pixel_stride.*at least 1, got 0',
        ),
        (dict(mutual=dict(members=[{}], ratios=[1], labeling=dict(pixels=1))), 'num_workers'),
        ({'model.type': 'mmdmt.MeanTeacher'}, 'EncoderDecoder'),
        ({'train_dataloader.dataset.datasets': [dict()]}, 'two sources'),
    ],
)
def test_wrong_configs_are_refused_by_key(change, message):
    cfg = base_config()
    if 'mutual' in change:
        cfg.mutual = change['mutual']
    else:
        cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=message):
        StageConfigBuilder(cfg)


def test_rounds_take_batch_statistics_and_round_0_has_none():
    cfg = base_config(round=dict(batch_statistics='domain'))
    assert build('stage_1_c', cfg).model.batch_statistics == 'domain'
    assert 'batch_statistics' not in build('stage_0_c', cfg).model
    assert 'batch_statistics' not in build('stage_1_c').model


def test_unknown_batch_statistics_are_refused_before_round_0():
    with pytest.raises(ValueError, match=r'mutual\.round\.batch_statistics.*domian'):
        StageConfigBuilder(base_config(round=dict(batch_statistics='domian')))
