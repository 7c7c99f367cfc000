"""Every shipped config loads, builds, and is what its file name means."""

import ast
import copy
import functools
import re

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, LOOPS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from shipped_configs import CONFIGS, build, load, names_of, read
from tiny_models import tiny_segmentor

import mmdmt.classification  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.export.plain import dicts_in
from mmdmt.protocols import PROTOCOLS

NO_RUNS = ('_base_', 'benchmarks')  # plans of benchmarks are tested with their tool
FOLDERS = sorted(p.name for p in CONFIGS.iterdir() if p.is_dir() and p.name not in NO_RUNS)
NAMES = [name for folder in FOLDERS for name in names_of(folder)]
CLASSIFIERS = names_of('dmt_classification')
SEGMENTORS = [name for name in NAMES if name not in CLASSIFIERS]
SUPERVISED = names_of('supervised')
SCHEDULES = sorted(path.name for path in (CONFIGS / '_base_' / 'schedules').glob('*.py'))
NAME = re.compile(
    r'(?P<method>[a-z0-9-]+_)?(?P<head>deeplabv2|deeplabv3plus|segformer|upernet|fcn|dpt'
    r'|deeplabv3plus-segformer)_(?P<backbone>[^_]+?)(_(?P<labels>\d+_\d+|\d+))?'
    r'_(?P<dataset>pascal_voc12|(gta5-|synthia-)?cityscapes|kvasir-seg|ade20k|coco81|camvid|msrc21|folder|toy-scenes|toy-shift)'
    r'-(?P<height>\d+)x(?P<width>\d+)'
)
HEADS = {
    'deeplabv2': 'mmdmt.DeepLabV2Head',
    'deeplabv3plus': 'DepthwiseSeparableASPPHead',
    'segformer': 'SegformerHead',
    'upernet': 'UPerHead',
    'fcn': 'FCNHead',
    'dpt': 'mmdmt.DPTHead',
}
# Divisors that were published as such: 1 label in 105.82.
LIST_FOLDERS = {'1_106': '1_105.82', '1_30': '1_29.75'}
# DMT's ablations, and two of DST-CBC's, were made on another fold.
FOLDS = {
    **dict.fromkeys(('dst-cbc-st', 'dst-cbc-ost'), 'fold_1'),
    **dict.fromkeys(
        ('dmt-ablation', 'dmt-flip', 'dmt-gamma0', 'naive', 'cbst', 'dst', 'online', 'curriculum'),
        'fold_2',
    ),
}
LISTS = {'labeled_list', 'unlabeled_list', 'val_list'}
CPU = 'deeplabv3plus_mobilenetv2_msrc21-96x96'
#: Configs of more than six lines, by what is particular.
LONGER = {
    'a network, and an optimizer or hooks for it': [
        'supervised/deeplabv2_r101_pascal_voc12-321x321',
        'supervised/deeplabv3plus_mobilenetv2_camvid-360x480',
        'supervised/deeplabv3plus_mobilenetv2_msrc21-192x192',
        'supervised/deeplabv3plus_mobilenetv2_msrc21-96x96',
        'supervised/deeplabv3plus_r50_cityscapes-801x801',
        'supervised/deeplabv3plus_r50_coco81-513x513',
        'supervised/fcn_unet_toy-scenes-96x96',
        'supervised/segformer_mit-b1_cityscapes-1024x1024',
        'supervised/segformer_mit-b1_pascal_voc12-512x512',
        'supervised/adam_deeplabv2_r101_pascal_voc12-321x321',
        'supervised/deeplabv3plus_r50_cityscapes-800x800',
        'supervised/deeplabv3plus_r50_pascal_voc12-512x512',
        'supervised/ohem_deeplabv3plus_r50_cityscapes-801x801',
        'supervised/dpt_dinov3-small_pascal_voc12-512x512',
        'supervised/deeplabv3plus_r50_ade20k-513x513',
        'supervised/deeplabv3plus_xception65_coco81-513x513',
        *(
            f'supervised/dpt_dinov2-small_{data}'
            for data in (
                'ade20k-518x518',
                'cityscapes-798x798',
                'coco81-518x518',
                'pascal_voc12-518x518',
            )
        ),
        'dmt_classification/supervised_wrn-16-1_4000_cifar10-16x16',
    ],
    'generated scenes in two folders': ['supervised/fcn_unet_toy-shift-96x96'],
    'another size of the network, with its weights': [
        f'dual_teacher/dual-teacher_segformer_mit-b{size}_1_16_ade20k-512x512'
        for size in (0, 2, 3, 4, 5)
    ],
    'two networks': [
        'cross_teacher/cross-teacher_deeplabv3plus-segformer_r50-mit-b1_pascal_voc12-321x321',
        'dmt/dmt_deeplabv3plus-segformer_r50-mit-b1_1_8_pascal_voc12-321x321',
        f'dmt/dmt-cnn-transformer_{CPU}',
    ],
    'a published run, which others inherit': [
        'dmt/dmt_deeplabv2_r101_1_20_pascal_voc12-321x321',
        'dmt/dmt_deeplabv2_r101_1_8_cityscapes-256x512',
        'dmt/dst-cbc_deeplabv2_r101_1_20_pascal_voc12-321x321',
        'dmt/dst-cbc_deeplabv2_r101_1_8_cityscapes-257x513',
        'dual_teacher/dual-teacher_segformer_mit-b1_1_16_ade20k-512x512',
        'dmt_classification/dmt_wrn-28-2_1000_cifar10-32x32',
        'dmt_classification/dmt_wrn-28-2_4000_cifar10-32x32',
        'st/st_deeplabv3plus_r50_1_8_cityscapes-721x721',
        'augseg/augseg_deeplabv3plus_r50_cityscapes-800x800',
        *(f'augseg/augseg_deeplabv3plus_r{n}_pascal_voc12-513x513' for n in (50, 101)),
        'u2pl/u2pl_deeplabv3plus_r101_cityscapes-769x769',
        'u2pl/u2pl_deeplabv3plus_r101_pascal_voc12-513x513',
    ],
    'released code, difference by difference': [
        'cross_teacher/cross-teacher-released_deeplabv2_r101_1_50_pascal_voc12-321x321',
        'cross_teacher/cross-teacher-released_deeplabv2_r101_1_8_cityscapes-256x512',
        'dual_teacher/dual-teacher-released_segformer_mit-b1_1_16_ade20k-512x512',
    ],
    'an ablation in several settings': [
        f'dmt/{method}_deeplabv2_r101_1_50_pascal_voc12-321x321'
        for method in ('curriculum', 'online')
    ],
    'settings for few images or few steps': [
        'cross_teacher/cross-teacher_deeplabv3plus_mobilenetv2_camvid-360x480',
        f'cross_teacher/cross-teacher_{CPU}',
        f'dual_teacher/dual-teacher_{CPU}',
        'dual_teacher/dual-teacher_fcn_unet_toy-scenes-96x96',
        'dmt/dmt_deeplabv3plus_mobilenetv2_camvid-360x480',
        'dmt/dmt_deeplabv3plus_mobilenetv2_folder-512x512',
        f'dmt/dmt_{CPU}',
        'dmt/dmt_fcn_unet_toy-scenes-96x96',
        'dmt/dmt_fcn_unet_toy-shift-96x96',
        'dmt_classification/dmt_wrn-16-1_4000_cifar10-16x16',
        'dmt_classification/dmt_wrn-28-2_labeled_folder-64x64',
    ],
}


def parts_of(name):
    return NAME.fullmatch(name.split('/')[1])


def networks(cfg):
    """The ordinary segmentors of a config."""
    inner = cfg.model.get('segmentor', cfg.model)
    return [inner] if 'type' in inner else list(inner.values())


def code_of(name):
    """Bases of a config file, and the names that it sets."""
    tree = ast.parse((CONFIGS / f'{name}.py').read_text())
    values = {
        name.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    bases = ast.literal_eval(values.pop('_base_'))
    return [bases] if isinstance(bases, str) else bases, set(values)


def lines_of(name):
    """Lines of code of a config file, with `_base_` as one."""
    text = (CONFIGS / f'{name}.py').read_text()
    lines = [line.strip() for line in text.splitlines()]
    (bases,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_'
    )
    code = [line for line in lines if line and not line.startswith('#')]
    return len(code) - (bases.end_lineno - bases.lineno)


def find(registry, kind):
    """The class of a type in the default scope, None if there is none."""
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)


@functools.cache
def build_once(model_text, scope):
    """Build one of the different models; the text is that of its config."""
    return type(build(Config.fromstring(f'model = {model_text}', '.py').model, scope)).__name__


# ---------------------------------------------------------------- how many, how long


def test_configs_are_few():
    # A network and a dataset make a config, labels are an option: fifteen methods, two domain
    # shifts, the published networks and the plans of benchmarks need not more.
    assert len(list(CONFIGS.rglob('*.py'))) <= 335


@pytest.mark.parametrize('name', NAMES)
def test_no_config_only_sets_a_list(name):
    bases, names = code_of(name)
    assert len(bases) > 1 or names - LISTS, 'which labels is an option: it needs no file'


def test_a_config_has_six_lines_unless_something_is_particular():
    """`_base_` counts as one; those that are longer are named with the reason."""
    named = [name for names in LONGER.values() for name in names]
    assert sorted(name for name in NAMES if lines_of(name) > 6) == sorted(named)


def test_metafiles_list_measured_results():
    report = (CONFIGS.parent / 'docs' / 'results.md').read_text()
    for path in CONFIGS.glob('*/metafile.yml'):
        for model in yaml.safe_load(path.read_text())['Models']:
            assert model['Config'] == f'configs/{path.parent.name}/{model["Name"]}.py'
            assert (CONFIGS.parent / model['Config']).is_file()
            (result,) = model['Results']
            assert f'{result["Metrics"]["mIoU"]} ' in report.replace('*', ' ')


# ---------------------------------------------------------------- every config


@pytest.mark.parametrize('name', NAMES)
def test_config_builds(name):
    cfg = load(name)
    scope = 'mmpretrain' if name in CLASSIFIERS else 'mmseg'
    assert cfg.default_scope == scope
    assert 'mmdmt' in cfg.custom_imports['imports']
    assert cfg.custom_imports['allow_failed_imports'] is False
    assert cfg.runner_type.startswith('mmdmt.')
    model = cfg.model.to_dict()
    for network in networks(cfg) if 'segmentor' in model else []:
        # A method holds several copies of networks: each is built once, and the method with small
        # ones.
        build_once(repr(network.to_dict()), scope)
        model['segmentor'] = tiny_segmentor(num_classes=3)
    assert build_once(repr(model), scope) == cfg.model.type.split('.')[-1]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_the_model_is_whole_before_settings_are_resolved(name):
    """What reads a config file without the runners builds the same model."""
    cfg = read(name)
    for network in networks(cfg):
        assert tuple(network.data_preprocessor['size']) == tuple(cfg.crop_size)
        assert network.decode_head.num_classes == cfg.num_classes


@pytest.mark.parametrize('name', NAMES)
def test_all_types_exist(name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            for part in dicts_in(loader.dataset.to_dict()):
                registry = (
                    DATASETS if {'pipeline', 'datasets', 'data_root'} & set(part) else TRANSFORMS
                )
                if 'type' in part:
                    assert find(registry, part['type']), part['type']
        for hook in (*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])):
            assert find(HOOKS, hook.type), hook.type
        for loop in (cfg.train_cfg, cfg.val_cfg, cfg.test_cfg):
            assert find(LOOPS, loop.type), loop.type
    assert cfg.default_hooks.method.type == 'mmdmt.MethodHook'


@pytest.mark.parametrize('name', NAMES)
def test_the_text_of_a_config_is_a_config(name, unformatted_configs):
    cfg = load(name)
    assert not [key for key in cfg if key.endswith('settings')]
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.to_dict() == cfg.to_dict()
    assert resolve_config(again).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', SEGMENTORS)
def test_config_is_what_its_name_says(name):
    cfg, parts = load(name), parts_of(name)
    assert parts, f'{name} does not follow the naming rule'
    found = networks(cfg)
    heads = parts['head'].split('-')[: len(found)]
    backbones = parts['backbone'].split('-', 1) if len(found) == 2 else [parts['backbone']]
    for network, head, backbone in zip(found, heads, backbones):
        assert network.decode_head.type == HEADS[head]
        if re.match(r'r\d', backbone):
            depth = re.match(r'r(\d+)', backbone)[1]
            assert network.backbone.depth == int(depth)
            assert f'resnet{depth}' in network.backbone.init_cfg.checkpoint
        if backbone.startswith('dinov'):
            plain = read(f'_base_/models/dpt_{backbone}').model
            assert network.backbone.to_dict() == plain.backbone.to_dict()
            for key in ('in_channels', 'channels', 'project_channels', 'patch_size'):
                assert network.decode_head[key] == plain.decode_head[key]
        if backbone.startswith('mit-'):
            plain = read(f'_base_/models/segformer_{backbone}').model
            assert network.backbone.to_dict() == plain.backbone.to_dict()
            assert network.decode_head.in_channels == plain.decode_head.in_channels
            assert backbone.replace('-', '_') in network.backbone.init_cfg.checkpoint
    crop = (int(parts['height']), int(parts['width']))
    for network in found:
        assert tuple(network.data_preprocessor['size']) == crop
        if network.test_cfg.mode == 'slide':
            assert tuple(network.test_cfg.crop_size) == crop
            assert all(0 < s < c for s, c in zip(network.test_cfg.stride, crop))
    for source in cfg.train_dataloader.dataset.datasets:
        assert [tuple(s.crop_size) for s in source.pipeline if s.type == 'RandomCrop'] == [crop]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_lists_belong_together(name):
    sources, parts = load(name).train_dataloader.dataset.datasets, parts_of(name)
    labels, fold = parts['labels'], FOLDS.get((parts['method'] or '')[:-1], 'fold_0')
    assert len(sources) == (1 if 'supervised' in name else 2)
    assert any(
        'LoadAnnotations' in step.type or 'LoadMasks' in step.type for step in sources[0].pipeline
    )
    if len(sources) == 1:
        return
    assert sources[1].type == 'mmdmt.UnlabeledDataset'
    labeled, unlabeled = (source.ann_file.rsplit('/', 1) for source in sources)
    assert labeled[0] == unlabeled[0] or labels == '1464'
    if '_' in (labels or ''):
        assert labeled[0] == f'splits/{LIST_FOLDERS.get(labels, labels)}/{fold}'


@pytest.mark.parametrize('name', SEGMENTORS)
def test_classes_are_those_of_the_dataset(name):
    cfg = load(name)
    source = cfg.val_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmseg'):
        classes = source.metainfo.get('classes') or find(DATASETS, source.type).METAINFO['classes']
    for network in networks(cfg):
        assert network.decode_head.num_classes == len(classes)


@pytest.mark.parametrize('name', NAMES)
def test_images_are_decoded_alike_for_training_labeling_validation_and_test(name):
    cfg = load(name)
    pipelines = [cfg.to_dict()]
    for protocol in PROTOCOLS.values():
        pipelines += [protocol.pipeline(), protocol.inference_pipeline()]
    steps = [
        step
        for step in dicts_in(pipelines)
        if str(step.get('type')).split('.')[-1] in ('LoadImageFromFile', 'LoadImageAtSize')
    ]
    assert {step.get('imdecode_backend') for step in steps} == {'pillow'}


@pytest.mark.parametrize('name', SEGMENTORS)
def test_no_loss_counts_ignored_pixels(name):
    for part in dicts_in(load(name).model):
        if part.get('type') == 'CrossEntropyLoss':
            assert part['avg_non_ignore'] is True


@pytest.mark.parametrize('name', SEGMENTORS)
def test_every_setting_goes_everywhere(name):
    cfg = read(name)
    metainfo = dict(classes=tuple('abcdefg'), palette=[[0, 0, n] for n in range(7)])
    options = dict(
        data_root='/d',
        labeled_list='/l.txt',
        unlabeled_list='/u.txt',
        val_list='/v.txt',
        img_suffix='.x',
        seg_map_suffix='.y',
        num_classes=7,
        padding='black',
        image_size=(62, 34),
        resize_ratio=(0.9, 1.1),
        crop_size=(64, 48),
        batch_size=6,
        source_ratio=[1, 2],
        max_iters=5,
    )
    # A labeled source of another dataset has some settings of its own.
    own = dict(labeled_root='/d', labeled_image_size=(62, 34))
    own.update(labeled_img_suffix='.x', labeled_seg_map_suffix='.y')
    options.update({key: value for key, value in own.items() if key in cfg})
    members = (cfg.get('mutual') or {}).get('members', [])
    for index, member in enumerate(members):
        if 'labeled_list' in member:
            with pytest.raises(ValueError, match=f'`mutual.members.{index}.labeled_list` too'):
                changed(name, {key: options[key] for key in {*options} - {*fixed_settings(cfg)}})
            options[f'mutual.members.{index}.labeled_list'] = '/m.txt'
    for key in fixed_settings(cfg):
        with pytest.raises(ValueError, match=f'`{key}` is set to .*, but '):
            changed(name, {**options, 'metainfo': metainfo})
        del options[key]
    cfg = changed(name, {**options, 'metainfo': metainfo})
    labeled, unlabeled = cfg.train_dataloader.dataset.datasets
    assert (labeled.ann_file, unlabeled.ann_file) == ('/l.txt', '/u.txt')
    for dataset in (labeled, unlabeled, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
        assert (dataset.data_root, dataset.img_suffix) == ('/d', '.x')
        assert dataset.get('seg_map_suffix') == (None if dataset is unlabeled else '.y')
        assert dataset.metainfo == metainfo
    assert cfg.val_dataloader.dataset.ann_file == '/v.txt'
    crop, squash = (
        options.get('crop_size'),
        name.startswith(('dmt/dst-cbc_deeplabv2', 'dmt/dst-cbc-')),
    )
    # Those of DST-CBC squash images to between the crop, as (width, height), and the image size.
    scales = {(62, 34), crop or (513, 257)} if squash else {(62, 34)}
    labeling = (cfg.get('mutual') or {}).get('labeling', {}).get('pipeline', [])
    for part in dicts_in([cfg.train_dataloader.to_dict(), *labeling]):
        if crop:
            assert tuple(part.get('crop_size', crop)) == crop
        assert tuple(part.get('ratio_range', (0.9, 1.1))) == (0.9, 1.1)
        if 'scale' in part:
            several = part['type'] == 'RandomResize' and squash
            assert set(part['scale'] if several else [tuple(part['scale'])]) <= scales
    members = [m.get('cfg_options', {}) for m in (cfg.get('mutual') or {}).get('members', [])]
    for part in dicts_in([cfg.model.to_dict(), *members]):
        assert 'mean' not in part or part.get('padding', 'black') == 'black'
        assert part.get('num_classes', 7) == 7
        if crop and 'size' in part and 'mean' in part:
            assert tuple(part['size']) == crop
    assert cfg.train_dataloader.batch_size == cfg.train_dataloader.sampler.batch_size == 6
    assert cfg.train_dataloader.sampler.source_ratio == [1, 2]
    if 'max_iters' in options:
        assert cfg.train_cfg.max_iters == 5
        assert 'released' in name or cfg.param_scheduler[-1].end == 5
        assert all(s.begin < s.end for s in cfg.param_scheduler)


def changed(name, options):
    cfg = read(name)
    cfg.merge_from_dict(copy.deepcopy(options))
    return resolve_config(cfg)


def fixed_settings(cfg):
    """Settings that a config refuses to change, in the order in which it says so."""
    noted = [settings for key, settings in cfg.items() if key.endswith('settings')]
    fixed = [name for settings in noted for name, value in settings.items() if 'fixed' in value]
    return [*fixed, 'max_iters'] if 'mutual' in cfg else fixed


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule_ends_where_training_ends(name):
    cfg = Config.fromfile(CONFIGS / '_base_' / 'schedules' / name)
    steps = cfg.max_iters
    resolve_config(cfg)
    assert cfg.train_cfg.max_iters == steps == cfg.param_scheduler[-1].end
    if re.search(r'_\d+k_', name):
        assert name.startswith(f'schedule_{steps // 1000}k_')
    assert steps % cfg.train_cfg.val_interval == 0
    begin = 0
    for scheduler in cfg.param_scheduler:
        assert scheduler.begin == begin and scheduler.by_epoch is False
        begin = scheduler.end


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule_decays_to_zero(name):
    cfg = resolve_config(Config.fromfile(CONFIGS / '_base_' / 'schedules' / name))
    steps = 400  # the same curve, sooner
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for item in cfg.param_scheduler.copy():
        ends = {key: item[key] * steps // cfg.train_cfg.max_iters for key in ('begin', 'end')}
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
