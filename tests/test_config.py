import copy

import pytest
from mmengine.config import Config

from mmdmt.config import merge_options, resolve_config

TEXT = """
data_root = 'data/x'
labeled_list = 'l.txt'
unlabeled_list = 'u.txt'
crop_size = (32, 32)
batch_size = 4
source_ratio = [1, 3]
settings = dict(
    data_root=dict(default=data_root, sets=['*_dataloader.**.data_root']),
    labeled_list=dict(
        default=labeled_list, sets=['train_dataloader.dataset.datasets.0.**.ann_file']),
    unlabeled_list=dict(
        default=unlabeled_list, sets=['train_dataloader.dataset.datasets.1.**.ann_file']),
    crop_size=dict(default=crop_size, sets=[
        'train_dataloader.**.RandomCrop.crop_size', 'model.**.data_preprocessor.size']),
    source_ratio=dict(default=source_ratio, sets=['train_dataloader.sampler.source_ratio']))
loader_settings = dict(
    batch_size=dict(
        default=batch_size,
        sets=['train_dataloader.batch_size', 'train_dataloader.sampler.batch_size']))
pipeline = [dict(type='Load'), dict(type='some.RandomCrop', crop_size=crop_size)]
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(batch_size=batch_size, source_ratio=source_ratio),
    dataset=dict(datasets=[
        dict(data_root=data_root, ann_file=labeled_list, pipeline=pipeline),
        dict(type='ConcatDataset', datasets=[
            dict(dataset=dict(data_root=data_root, ann_file=unlabeled_list, pipeline=pipeline)),
            dict(data_root='elsewhere', ann_file='', pipeline=pipeline)])]))
val_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root, ann_file='l.txt'))
model = dict(
    segmentor=dict(data_preprocessor=dict(size=crop_size)),
    other=dict(size=crop_size, crop_size=crop_size))
"""


@pytest.fixture
def cfg():
    return Config.fromstring(TEXT, '.py')


def sources(cfg):
    labeled, unlabeled = cfg.train_dataloader.dataset.datasets
    return [labeled, unlabeled.datasets[0].dataset, unlabeled.datasets[1]]


def resolved(cfg, **options):
    cfg.merge_from_dict(options)
    return resolve_config(cfg)


def test_a_setting_reaches_every_place_of_its_paths_in_nested_sources_too(cfg):
    resolved(cfg, data_root='/new')
    assert [source.data_root for source in sources(cfg)] == ['/new', '/new', 'elsewhere']
    assert cfg.val_dataloader.dataset.data_root == '/new'


def test_lists_move_even_if_they_swap_places_and_stay_where_no_path_leads(cfg):
    resolved(cfg, labeled_list='u.txt', unlabeled_list='l.txt')
    assert [source.ann_file for source in sources(cfg)] == ['u.txt', 'l.txt', '']
    assert cfg.val_dataloader.dataset.ann_file == 'l.txt'


def test_types_of_list_elements_are_steps_of_a_path(cfg):
    resolved(cfg, crop_size=[64, 48])  # a list, as the command line gives it
    assert [source.pipeline[1].crop_size for source in sources(cfg)] == [(64, 48)] * 3
    assert cfg.model.segmentor.data_preprocessor['size'] == (64, 48)
    assert cfg.model.other['size'] == cfg.model.other.crop_size == (32, 32)


def test_a_config_in_between_that_used_its_own_value_notes_it_too(cfg):
    cfg.merge_from_dict(dict(crop_size=(16, 16), small_settings=dict(crop_size=dict())))
    cfg.small_settings.crop_size['default'] = (16, 16)
    cfg.model.segmentor.data_preprocessor['size'] = (16, 16)
    resolved(cfg, crop_size=(64, 48))
    assert cfg.model.segmentor.data_preprocessor['size'] == (64, 48)
    assert [source.pipeline[1].crop_size for source in sources(cfg)] == [(64, 48)] * 3


def test_the_batch_size_is_that_of_training_only(cfg):
    resolved(cfg, batch_size=6)
    assert cfg.train_dataloader.batch_size == cfg.train_dataloader.sampler.batch_size == 6
    assert cfg.val_dataloader.batch_size == 4


def test_a_place_with_a_value_of_its_own_keeps_it(cfg):
    resolved(cfg, **{'data_root': '/new', 'val_dataloader.dataset.data_root': '/val'})
    assert cfg.val_dataloader.dataset.data_root == '/val'


def test_what_only_feeds_other_keys_goes_and_a_second_call_changes_nothing(cfg, tmp_path):
    cfg.work_dir, cfg.channels_last = '/work', True
    resolved(cfg, data_root='/new')
    assert set(cfg) == {'train_dataloader', 'val_dataloader', 'model', 'work_dir', 'channels_last'}
    once = copy.deepcopy(cfg).to_dict()
    assert resolve_config(cfg).to_dict() == once
    cfg.dump(tmp_path / 'cfg.py')
    assert resolve_config(Config.fromfile(tmp_path / 'cfg.py')).to_dict() == once


@pytest.mark.parametrize(
    ('ratio', 'left', 'lists'), [([1, 0], [1], ['l.txt']), ([0, 2], [2], ['u.txt'])]
)
def test_a_source_with_the_ratio_0_is_not_read(cfg, ratio, left, lists):
    cfg.train_dataloader.dataset.datasets[1] = dict(ann_file='u.txt')
    resolved(cfg, source_ratio=ratio)
    assert cfg.train_dataloader.sampler.source_ratio == left
    assert [source.ann_file for source in cfg.train_dataloader.dataset.datasets] == lists


def test_mutual_training_needs_both_sources(cfg):
    cfg.mutual = dict(members=[dict(name='a')])
    with pytest.raises(ValueError, match=r'`source_ratio` is \[1, 0\].*both sources'):
        resolved(cfg, source_ratio=[1, 0])


def test_members_and_rounds_change_settings_of_their_own(cfg):
    cfg.mutual = dict(
        members=[dict(name='a'), dict(name='b', cfg_options=dict(crop_size=(8, 8), lr=1))],
        round=dict(cfg_options=dict(batch_size=2)),
    )
    resolved(cfg)
    options = cfg.mutual.members[1].cfg_options.to_dict()
    crop = 'train_dataloader.dataset.datasets.0.pipeline.1.crop_size'
    assert options.pop('lr') == 1 and options[crop] == (8, 8)
    assert options['model.segmentor.data_preprocessor.size'] == (8, 8)
    assert set(cfg.mutual.round.cfg_options) == {
        'train_dataloader.batch_size',
        'train_dataloader.sampler.batch_size',
    }
    member = copy.deepcopy(cfg)
    member.merge_from_dict(options)
    assert [source.pipeline[1].crop_size for source in sources(member)] == [(8, 8)] * 3
    assert sources(cfg)[0].pipeline[1].crop_size == (32, 32)


def test_a_setting_reaches_what_members_replace_also_behind_dots(cfg):
    cfg.settings.num_classes = dict(
        default=4, sets=['model.**.num_classes', 'mutual.**.num_classes']
    )
    head = {'model.decode_head.num_classes': 4, 'model.decode_head.other': 4}
    cfg.mutual = dict(members=[dict(cfg_options=head)])
    resolved(cfg, num_classes=7)
    assert list(cfg.mutual.members[0].cfg_options.values()) == [7, 4]


def test_a_setting_that_goes_nowhere_is_refused(cfg):
    cfg.settings.crop_size.sets = ['train_dataloader.**.RandomCrop.cropsize']
    resolve_config(copy.deepcopy(cfg))  # as long as it is not changed
    with pytest.raises(ValueError, match=r'`crop_size` is set to \[8, 8\].*cropsize'):
        resolved(cfg, crop_size=(8, 8))


SCHEDULE = """
max_iters = 400
schedule_settings = dict(
    max_iters=dict(default=400, sets=['train_cfg.max_iters', 'param_scheduler.**.end']))
train_cfg = dict(max_iters=400)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=40), dict(type='PolyLR', begin=40, end=400)]
"""


@pytest.mark.parametrize(
    ('max_iters', 'spans'),
    [
        (400, [(0, 40), (40, 400)]),
        (41, [(0, 40), (40, 41)]),  # shortest in which it ends
        (40, [(0, 4), (4, 40)]),
        (20, [(0, 2), (2, 20)]),
        (9, [(0, 9)]),  # none is left
    ],
)
def test_a_warm_up_that_would_not_end_is_shortened_as_the_training_is(max_iters, spans):
    cfg = Config.fromstring(SCHEDULE, '.py')
    resolved(cfg, max_iters=max_iters)
    assert [(s.begin, s.end) for s in cfg.param_scheduler] == spans
    assert cfg.train_cfg.max_iters == max_iters


@pytest.mark.parametrize('part', ['supervised', 'round'])
def test_a_length_that_stages_do_not_take_is_refused(part):
    cfg = Config.fromstring(SCHEDULE, '.py')
    cfg.mutual = {'members': [dict(name='a')], part: dict(max_iters=10)}
    resolved(copy.deepcopy(cfg))
    with pytest.raises(
        ValueError, match=r'`max_iters` is set to 77.*mutual\.supervised\.max_iters'
    ):
        resolved(copy.deepcopy(cfg), max_iters=77)
    # Noted by a config in between, it is none that the user set.
    cfg.length_settings = dict(max_iters=dict(default=77))
    resolved(cfg, max_iters=77)
    assert cfg.train_cfg.max_iters == 77


def test_labels_of_all_rounds_but_not_of_the_first_are_refused(cfg):
    cfg.labeled_list = 'fold_0/l.txt'
    cfg.settings.labeled_list.default = 'fold_0/l.txt'
    cfg.train_dataloader.dataset.datasets[0].ann_file = 'fold_0/l.txt'
    left, right = (dict(name=x, labeled_list=f'fold_0/{x}.txt') for x in ('left', 'right'))
    cfg.mutual = dict(members=[dict(name='all'), left, right])
    resolved(copy.deepcopy(cfg))
    options = dict(labeled_list='fold_1/l.txt')
    with pytest.raises(ValueError, match=r"'fold_1/l\.txt'.*`mutual\.members\.1\.labeled_list`"):
        resolved(copy.deepcopy(cfg), **options)
    options['mutual.members.1.labeled_list'] = 'fold_1/left.txt'
    with pytest.raises(ValueError, match=r'`mutual\.members\.2\.labeled_list`'):
        resolved(copy.deepcopy(cfg), **options)
    options['mutual.members.2.labeled_list'] = 'fold_1/right.txt'
    resolved(cfg, **options)
    assert sources(cfg)[0].ann_file == 'fold_1/l.txt'


def test_a_setting_that_must_keep_its_value_is_refused_with_the_reason(cfg):
    cfg.settings.crop_size.fixed = 'images are squashed to it'
    resolved(copy.deepcopy(cfg))
    with pytest.raises(
        ValueError, match=r'`crop_size` is set to \(8, 8\), but images are squashed'
    ):
        resolved(cfg, crop_size=(8, 8))


def test_a_setting_that_no_dataset_notes_is_refused(cfg):
    cfg.settings.val_list = dict(sets=['val_dataloader.**.ann_file'])
    with pytest.raises(ValueError, match=r"`val_list` is set to 'v.txt'.*has no default"):
        resolved(cfg, val_list='v.txt')


def test_a_misspelled_setting_is_refused(cfg):
    cfg.settings.crop_sise = dict(default=(32, 32), sets=['model.size'])
    with pytest.raises(ValueError, match=r"notes \['crop_sise'\]"):
        resolved(cfg)
    cfg.settings.pop('crop_sise')
    cfg.settings.crop_size.set = []
    with pytest.raises(ValueError, match=r"settings\.crop_size.*\['set'\].*sets"):
        resolved(cfg)


def test_a_config_without_settings_is_left_alone():
    cfg = Config(dict(data_root='/new', val_dataloader=dict(dataset=dict(data_root='old')), mine=1))
    before = copy.deepcopy(cfg).to_dict()
    assert resolve_config(cfg).to_dict() == before


def test_different_batch_sizes_of_loader_and_sampler_are_refused(cfg):
    with pytest.raises(ValueError, match=r'`train_dataloader\.batch_size` is 8.* is 4'):
        resolved(cfg, **{'train_dataloader.batch_size': 8})


def test_options_that_no_config_has_are_refused(cfg):
    merge_options(
        cfg, {'crop_size': (8, 8), 'evaluation_protocol': 'x', 'model.new': 1, 'resume': 1}
    )
    assert (cfg.crop_size, cfg.model.new) == ((8, 8), 1)
    with pytest.raises(ValueError, match=r"--cfg-options.*\['crop_sise'\] \(is 'crop_size' meant"):
        merge_options(cfg, {'crop_sise': (8, 8)})
    plain = Config(dict(model=dict()))
    merge_options(plain, dict(mine=1))
    assert plain.mine == 1


@pytest.mark.parametrize(
    ('option', 'meant'),
    [
        ('train_cfg.max_iter', 'max_iters'),
        ('train_cgf.max_iters', 'train_cfg'),
        ('load_form', 'load_from'),
        ('optim_wrapper.optimiser.lr', 'optimizer'),
        ('model.decode_head.num_class', 'num_classes'),
        ('model.losses.0.loss_weigth', 'loss_weight'),
    ],
)
def test_an_option_that_is_nearly_one_of_the_config_is_refused(option, meant):
    with pytest.raises(ValueError, match=f"--cfg-options: `{option}` .*is '{meant}' meant"):
        merge_options(plain_config(), {option: 1})


@pytest.mark.parametrize(
    'option',
    [
        'train_cfg.max_iters',
        'load_from',
        'randomness.deterministic',
        'visualizer.vis_backends',
        'default_hooks.early_stopping.type',
        'default_hooks.checkpoint.save_last',
        'optim_wrapper.clip_grad.max_norm',
        'model.losses.0.class_weight',
        'model.losses.0.loss_weight',
        'model.decode_head.conv2',
        'model.decode_head.dropout_ratio',
        'model.backbone.init_cfg',
        'my_own',
    ],
)
def test_an_option_that_is_new_is_merged(option):
    cfg = plain_config()
    merge_options(cfg, {option: 1})
    for step in option.split('.'):
        cfg = cfg[int(step) if step.isdigit() else step]
    assert cfg == 1


def plain_config():
    """As of stock mmseg: no settings are noted."""
    head = dict(type='FCNHead', num_classes=2, conv1=dict(), in_channels=3)
    model = dict(decode_head=head, losses=[dict(loss_weight=1.0)], backbone=dict(depth=18))
    return Config(
        dict(
            model=model,
            optim_wrapper=dict(optimizer=dict(lr=0.1)),
            train_cfg=dict(max_iters=8, val_interval=4),
            default_hooks=dict(checkpoint=dict(save_best='mIoU', interval=2)),
            randomness=dict(seed=0),
        )
    )


def test_a_setting_that_a_file_misspells_is_refused(cfg):
    cfg.merge_from_dict(dict(source_ration=[1, 2], my_pipeline=[]))
    with pytest.raises(ValueError, match=r'`source_ration` is no setting.*`source_ratio` meant'):
        resolve_config(cfg)
