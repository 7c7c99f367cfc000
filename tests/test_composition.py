"""Methods composed with configs that have never heard of them: mmseg's own."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from forked_tool import ForkedTool
from mmengine.config import Config
from shipped_configs import load
from shipped_configs import read as read_shipped
from stock_data import LABELED, STOCK, UNLABELED, make_ade, make_cityscapes, make_voc

from mmdmt.composition import compose_method, method_names
from mmdmt.config import resolve_config
from mmdmt.engine.runners import MutualTrainingRunner, SemiRunner

_numbers = itertools.count()
SMALL = dict(crop_size=(32, 32), image_size=(96, 48), max_iters=2)


def resnet(*heads, **decode_head):
    """A narrow ResNet18 for a head of a ResNet50."""
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    model = dict(pretrained=None, backbone=backbone, decode_head=decode_head)
    return dict(model, auxiliary_head=dict(in_channels=32, channels=8))


def several(count, **head):
    """The same change of each of several heads."""
    return {str(index): head for index in range(count)}


VIT = dict(embed_dims=16, num_layers=4, num_heads=2, img_size=(32, 32))
# For each kind of network: a config of mmseg, and how it is made small.
NETWORKS = dict(
    fcn=('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024', resnet(in_channels=64, channels=8)),
    pspnet=('pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512', resnet(in_channels=64, channels=8)),
    deeplabv3plus=(
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
        resnet(in_channels=64, channels=8, c1_in_channels=8, c1_channels=4),
    ),
    upernet=(
        'upernet/upernet_r50_4xb2-40k_cityscapes-512x1024',
        resnet(in_channels=[8, 16, 32, 64], channels=8),
    ),
    segformer=(
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
        dict(
            backbone=dict(init_cfg=None, embed_dims=8, num_heads=[1, 1, 2, 2]),
            decode_head=dict(in_channels=[8, 8, 16, 16], channels=8),
        ),
    ),
    segmenter=(
        'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512',
        dict(
            pretrained=None,
            backbone=VIT,
            decode_head=dict(in_channels=16, channels=16, embed_dims=16, num_heads=2),
            test_cfg=dict(mode='whole'),
        ),
    ),
    ocrnet=(
        'ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024',
        dict(
            pretrained=None,
            backbone=dict(
                extra=dict(
                    stage1=dict(num_blocks=(1,), num_channels=(4,)),
                    stage2=dict(num_blocks=(1, 1), num_channels=(4, 4)),
                    stage3=dict(num_modules=1, num_blocks=(1, 1, 1), num_channels=(4, 4, 4)),
                    stage4=dict(num_modules=1, num_blocks=(1,) * 4, num_channels=(4,) * 4),
                )
            ),
            decode_head={
                '0': dict(in_channels=[4] * 4, channels=16),
                '1': dict(in_channels=[4] * 4, channels=8, ocr_channels=8),
            },
        ),
    ),
    bisenetv2=(
        'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024',
        dict(decode_head=dict(channels=8), auxiliary_head=several(4, channels=8)),
    ),
    setr=(
        'setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768',
        dict(
            backbone=dict(VIT, init_cfg=None, out_indices=(0, 1, 2, 3)),
            decode_head=dict(in_channels=16, channels=8),
            auxiliary_head=several(3, in_channels=16, channels=8),
            test_cfg=dict(mode='whole'),
        ),
    ),
    danet=(
        'danet/danet_r50-d8_4xb4-20k_voc12aug-512x512',
        resnet(in_channels=64, channels=8, pam_channels=4),
    ),
    knet=(
        'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
        dict(
            resnet(
                kernel_update_head=several(
                    3,
                    in_channels=8,
                    out_channels=8,
                    num_heads=2,
                    feedforward_channels=8,
                    kernel_updator_cfg=dict(in_channels=4, feat_channels=4, out_channels=4),
                ),
                kernel_generate_head=dict(in_channels=64, channels=8),
            )
        ),
    ),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Data in the layouts of the data sets of mmseg's configs."""
    root = tmp_path_factory.mktemp('stock')
    return dict(
        cityscapes=make_cityscapes(root / 'cityscapes'),
        ade20k=make_ade(root / 'ade20k'),
        voc12aug=make_voc(root / 'voc'),
    )


def stock(name, work_dir):
    """A config of mmseg as a child config would make it small."""
    path, model = NETWORKS[name]
    cfg = Config.fromfile(STOCK / f'{path}.py')
    cfg.merge_from_dict(dict(model=model))
    # Two steps of a warm-up would not move anything.
    cfg.param_scheduler = [each for each in cfg.param_scheduler if each.type != 'LinearLR']
    cfg.update(work_dir=str(work_dir), experiment_name=f'composed_{next(_numbers)}')
    return cfg


def options_of(cfg, data, **options):
    """What a user sets for small images, and where they lie."""
    root = next(str(data[key]) for key in data if key in cfg.filename)
    loaders = {
        f'{loader}_dataloader.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False))
    }
    return dict(SMALL, **loaders, data_root=root, **options)


def compose(name, data, work_dir, method='mean_teacher', **arguments):
    """A small config of mmseg with a method."""
    cfg = stock(name, work_dir)
    options = options_of(cfg, data, **arguments.pop('options', {}))
    if not {'unlabeled', 'labeled'} & set(arguments):
        voc = 'voc12aug' in cfg.filename
        lists = options['data_root'] + '/ImageSets/Segmentation/train.txt'
        arguments.update(labeled=lists) if voc else arguments.update(
            unlabeled=options['data_root'] + '/more'
        )
    return compose_method(cfg, method, options=options, **arguments)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_of_mmseg_trains_with_a_method(name, data, tmp_path):
    cfg = compose(name, data, tmp_path, options={'model.threshold': 0.0})
    assert cfg.model.type == 'mmdmt.MeanTeacher' and cfg.model.threshold == 0.0
    runner = SemiRunner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2 and int(runner.model.iterations) == 2
    scalars = runner.message_hub.log_scalars
    before, after = scalars['train/loss'].data[0]
    assert before != after and torch.isfinite(torch.tensor([before, after])).all()
    assert scalars['train/unsup_loss'].current() > 0
    assert 'val/teacher/mIoU' in scalars


# ------------------------------------------------------------------------------ what is composed


def test_the_composed_config_says_what_a_shipped_one_says(data, tmp_path):
    cfg = resolve_config(compose('fcn', data, tmp_path))
    first, second = cfg.train_dataloader.dataset.datasets
    assert [step.type for step in first.pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomResize', 'RandomCrop', 'RandomFlip',
        'PhotoMetricDistortion', 'mmdmt.PackSemiInputs',
    ]  # fmt: skip
    assert [step.type for step in second.pipeline] == [
        'LoadImageFromFile', 'RandomResize', 'RandomCrop', 'RandomFlip', 'mmdmt.PackSemiInputs',
    ]  # fmt: skip
    assert first.pipeline[3].cat_max_ratio == 0.75 and second.pipeline[2].cat_max_ratio == 1.0
    loader = cfg.train_dataloader
    assert (loader.batch_size, loader.sampler.source_ratio) == (4, [1, 1])  # 2 of them labeled
    assert cfg.model.segmentor.data_preprocessor.size == (32, 32)
    assert cfg.val_cfg.type == 'mmdmt.NetworksValLoop'
    hooks = cfg.default_hooks
    assert hooks.checkpoint.type == 'mmdmt.SafeCheckpointHook' and hooks.checkpoint.interval == 4000
    assert {'iter_seed', 'method', 'finite', 'dataset_check'} <= set(hooks)
    assert not {'data_preprocessor', 'settings', 'norm_cfg', 'crop_size'} & set(cfg)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


# What a leaf for the data set decides for itself: how images are packed and read, where, and hooks
# that mmseg's own config does not have.
LISTED = {'ann_file', 'data_root', 'data_prefix', 'img_suffix', 'metainfo', 'work_dir'}


def plain(name):
    """A supervised config of this package as mmseg would write it."""
    cfg = load(name)
    labeled = cfg.train_dataloader.dataset.datasets[0]
    labeled.pipeline[-1] = dict(type='PackSegInputs')
    cfg.train_dataloader.dataset = labeled
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.train_dataloader.batch_size //= 2
    cfg.val_cfg.type = 'ValLoop'
    cfg.default_hooks.checkpoint.type = 'CheckpointHook'
    for key in ('runtime_info', 'iter_seed', 'method', 'finite', 'dataset_check'):
        cfg.default_hooks.pop(key)
    for key in ('runner_type', 'custom_imports', 'randomness', 'trusted_checkpoints'):
        cfg.pop(key)
    return cfg


def without(node, keys):
    """A config without some keys, wherever they are."""
    if isinstance(node, dict):
        return {key: without(value, keys) for key, value in node.items() if key not in keys}
    return [without(each, keys) for each in node] if isinstance(node, (list, tuple)) else node


VOC_LEAF = 'deeplabv3plus_r50_pascal_voc12-321x321'


@pytest.mark.parametrize(
    ('method', 'leaf'),
    [
        ('mean_teacher', f'mean_teacher/mean-teacher_{VOC_LEAF}'),
        ('dual-teacher', f'dual_teacher/dual-teacher_{VOC_LEAF}'),
    ],
)
def test_the_composed_config_equals_the_shipped_one(method, leaf, data, tmp_path):
    expected = load(leaf).to_dict()
    ours = compose_method(read_shipped(f'supervised/{VOC_LEAF}'), method)
    assert resolve_config(ours).to_dict() == expected
    cfg = plain(f'supervised/{VOC_LEAF}')
    cfg.work_dir = str(tmp_path)
    root = data['voc12aug']
    options = dict(data_root=str(root))
    options['train_dataloader.dataset.ann_file'] = 'ImageSets/Segmentation/train.txt'
    unlabeled = str(root / 'ImageSets/Segmentation/aug.txt')
    found = resolve_config(compose_method(cfg, method, unlabeled, options=options)).to_dict()
    assert found['train_dataloader']['dataset']['datasets'][1]['ann_file'] == unlabeled
    assert without(found, LISTED) == without(expected, LISTED)


@pytest.mark.parametrize('method', [name for name in method_names() if name != 'supervised'])
def test_every_method_is_composed_with_any_config(method, data, tmp_path):
    cfg = resolve_config(compose('fcn', data, tmp_path, method))
    if 'mutual' in cfg:
        assert cfg.runner_type == 'mmdmt.MutualTrainingRunner'
        assert cfg.model.type == 'EncoderDecoder'
        MutualTrainingRunner(cfg).stage_config('round_1.a')
    else:
        assert cfg.model.segmentor.type == 'EncoderDecoder'


def test_labeled_images_alone_take_as_many_steps(data, tmp_path):
    cfg = resolve_config(compose('fcn', data, tmp_path, 'supervised'))
    assert cfg.train_cfg.max_iters == 2 and cfg.train_dataloader.batch_size == 2
    assert len(cfg.train_dataloader.dataset.datasets) == 1
    assert cfg.train_dataloader.sampler.source_ratio == [1]
    assert cfg.model.type == 'EncoderDecoder'


def test_a_chain_has_as_many_steps_as_the_config(data, tmp_path):
    cfg = compose('upernet', data, tmp_path, 'dmt', options=dict(max_iters=80))
    cfg = resolve_config(cfg)
    assert cfg.mutual.supervised.max_iters + 5 * cfg.mutual.round.max_iters == 80
    stages = [MutualTrainingRunner(cfg).stage_config(f'round_{n}.a') for n in (0, 1)]
    assert [each.train_cfg.max_iters for each in stages] == [20, 12]
    scheduler = stages[0].param_scheduler[-1]
    assert scheduler.end == 20
    options = cfg.train_dataloader.dataset.datasets[1].pipeline
    assert 'PhotoMetricDistortion' in [step.type for step in options]  # labels are stored


def test_the_rest_of_the_images_is_unlabeled(data, tmp_path):
    root = data['cityscapes']
    names = tmp_path / 'some.txt'
    names.write_text('town/town_000001_000019\n')
    cfg = resolve_config(compose('fcn', data, tmp_path, labeled=str(names)))
    first, second = cfg.train_dataloader.dataset.datasets
    assert first.ann_file == str(names)
    listed = (tmp_path / 'lists' / 'unlabeled_0.txt').read_text().split()
    assert second.ann_file == str(tmp_path / 'lists' / 'unlabeled_0.txt')
    assert listed == ['town/town_000000_000019', 'town/town_000002_000019']
    assert second.data_prefix.img_path == str(root / 'leftImg8bit/train')
    with pytest.raises(ValueError, match=r"'nowhere/x'|nowhere/x\. Names look like 'town/town_0"):
        names.write_text('nowhere/x\n')
        compose('fcn', data, tmp_path, labeled=str(names))


def test_labeled_images_are_left_out_of_a_folder(data, tmp_path):
    root = data['cityscapes']
    names = tmp_path / 'some.txt'
    names.write_text('town/town_000001_000019_leftImg8bit.png\n')  # with its suffix
    folder = str(root / 'leftImg8bit')
    cfg = resolve_config(compose('fcn', data, tmp_path, labeled=str(names), unlabeled=folder))
    first, second = cfg.train_dataloader.dataset.datasets
    listed = Path(second.ann_file).read_text().split()
    assert len(listed) == LABELED - 1 + 1  # and the validation image
    assert not any('town_000001' in name for name in listed if name.startswith('train'))
    assert Path(first.ann_file).read_text() == 'town/town_000001_000019\n'


def test_a_list_may_name_files(data, tmp_path):
    more = data['cityscapes'] / 'more'
    names = tmp_path / 'files.txt'
    names.write_text(''.join(f'{path}\n' for path in sorted(more.glob('*.jpg'))))
    cfg = resolve_config(compose('fcn', data, tmp_path, unlabeled=str(names)))
    second = cfg.train_dataloader.dataset.datasets[1]
    assert second.data_prefix.img_path == str(more) and second.img_suffix == ('.jpg',)
    assert len(Path(second.ann_file).read_text().split()) == UNLABELED


def test_a_concatenation_is_divided(data, tmp_path):
    root = data['voc12aug']
    names = tmp_path / 'some.txt'
    names.write_text('2007_000001\n2007_000005\n')  # one of train, one of aug
    cfg = resolve_config(compose('pspnet', data, tmp_path, labeled=str(names)))
    first, second = cfg.train_dataloader.dataset.datasets
    assert [len(Path(part.ann_file).read_text().split()) for part in first.datasets] == [1, 1]
    assert len(Path(second.ann_file).read_text().split()) == 5
    assert 'Pad' not in [step.type for step in second.pipeline]
    assert 'Pad' in [step.type for step in first.datasets[0].pipeline]
    assert str(root) in second.data_prefix.img_path


def test_a_repeated_dataset_and_a_preprocessor_at_the_top(data, tmp_path):
    cfg = stock('fcn', tmp_path)
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=40, dataset=dataset)
    cfg.data_preprocessor = dict(cfg.model.pop('data_preprocessor'))
    cfg.data_preprocessor.pop('size')
    options = options_of(cfg, data)
    composed = compose_method(cfg, 'mean_teacher', options['data_root'] + '/more', options=options)
    composed = resolve_config(composed)
    assert composed.train_dataloader.dataset.datasets[0].type == 'CityscapesDataset'
    assert composed.model.segmentor.data_preprocessor.size == (32, 32)  # of the crops
    assert 'data_preprocessor' not in composed


def test_epochs_become_the_steps_that_they_take(data, tmp_path, caplog):
    cfg = stock('fcn', tmp_path)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=5)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, begin=0, end=1),
        dict(type='MultiStepLR', milestones=[6, 8]),
        dict(type='PolyLR', begin=0, end=7, by_epoch=False),
    ]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=5)
    options = options_of(cfg, data)
    options.pop('max_iters')
    composed = compose_method(cfg, 'mean_teacher', options['data_root'] + '/more', options=options)
    composed = resolve_config(composed)
    steps = -(-LABELED // 2)
    loop = composed.train_cfg
    assert (loop.type, loop.max_iters) == ('IterBasedTrainLoop', 10 * steps)
    assert loop.val_interval == composed.default_hooks.checkpoint.interval == 5 * steps
    warm_up, drops, poly = composed.param_scheduler
    assert (warm_up.end, drops.milestones, poly.end) == (steps, [6 * steps, 8 * steps], 7)
    assert not any(each.by_epoch for each in (warm_up, drops, poly))
    assert not composed.default_hooks.checkpoint.by_epoch and not composed.log_processor.by_epoch


# ------------------------------------------------------------------------------------- refusals


def step(kind, **settings):
    return {'train_dataloader.dataset.pipeline.5': dict(type=kind, **settings)}


@pytest.mark.parametrize(
    ('change', 'method', 'message'),
    [
        ({}, 'mean_techer', "'mean_teacher' meant"),
        (step('RandomMosaic', prob=1.0), 'cps', r"'RandomMosaic'.*mixes several images"),
        (step('Normalize', mean=[0.0], std=[1.0]), 'cps', r"'Normalize'.*data_preprocessor"),
        (step('ConcatCDInput'), 'cps', r"'ConcatCDInput'.*not known.*unlabeled_pipeline"),
        ({'model.decode_head.out_channels': 1}, 'cps', r'decode_head\.out_channels. is 1'),
        ({'model.decode_head.type': 'Mask2FormerHead'}, 'cps', 'Mask2FormerHead.*softmax'),
        ({'model.type': 'CascadeEncoderDecoder'}, 'dmt', 'CascadeEncoderDecoder.*online'),
        ({'model.decode_head.type': 'DAHead'}, 'st', 'DAHead.*online'),
        ({'train_dataloader.dataset.type': 'MultiImageMixDataset',
          'train_dataloader.dataset.dataset': {}}, 'cps', 'MultiImageMixDataset'),
        ({'optim_wrapper.constructor': 'LearningRateDecayOptimizerConstructor'}, 'cps',
         "begin with 'student'"),
        ({'data_preprocessor.batch_augments': [dict(type='X')],
          'model.data_preprocessor.batch_augments': [dict(type='X')]}, 'cps', 'batch_augments'),
        ({'train_cfg.type': 'MyLoop'}, 'cps', r'`train_cfg\.type` is MyLoop'),
        ({'runner_type': 'MyRunner'}, 'cps', 'MyRunner'),
        ({'model.segmentor': {}}, 'cps', 'has a method already'),
    ],
)  # fmt: skip
def test_what_cannot_be_composed_is_refused(change, method, message, data, tmp_path):
    cfg = stock('fcn', tmp_path)
    cfg.merge_from_dict(change)
    options = options_of(cfg, data)
    with pytest.raises(ValueError, match=message):
        compose_method(cfg, method, options['data_root'] + '/more', options=options)


def test_an_option_that_would_change_nothing_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r'optimizer\.lr would change nothing'):
        compose('fcn', data, tmp_path, options={'optimizer.lr': 0.1})
    with pytest.raises(ValueError, match='max_itres'):
        compose('fcn', data, tmp_path, options={'max_itres': 7})


def test_mask2former_is_refused_with_the_reason(data, tmp_path):
    cfg = Config.fromfile(STOCK / 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py')
    cfg.work_dir = str(tmp_path)
    options = options_of(cfg, data)
    options.pop('image_size')
    with pytest.raises(ValueError, match='Mask2FormerHead: it predicts masks with classes'):
        compose_method(cfg, 'mean_teacher', options['data_root'] + '/more', options=options)


def test_missing_images_and_data_are_named(data, tmp_path):
    with pytest.raises(ValueError, match=r'needs unlabeled images.*--unlabeled.*--labeled LIST'):
        compose('fcn', data, tmp_path, unlabeled=None)
    with pytest.raises(FileNotFoundError, match='/no/such is neither a folder nor a list'):
        compose('fcn', data, tmp_path, unlabeled='/no/such')
    cfg = stock('fcn', tmp_path)
    with pytest.raises(ValueError, match=r"`data_root` 'data/cityscapes/' right"):
        compose_method(cfg, 'mean_teacher', '/tmp')


def test_a_pipeline_of_your_own_is_taken(data, tmp_path):
    cfg = stock('fcn', tmp_path)
    cfg.merge_from_dict(step('RandomMosaic', prob=1.0))
    cfg.unlabeled_pipeline = own = [
        dict(type='LoadImageFromFile'), dict(type='mmdmt.PackSemiInputs'),
    ]  # fmt: skip
    options = options_of(cfg, data)
    composed = compose_method(cfg, 'cps', options['data_root'] + '/more', options=options)
    assert composed.train_dataloader.dataset.datasets[1].pipeline == own


def test_the_command_line_prints_a_config_for_stock_tools(data, tmp_path):
    base, model = NETWORKS['fcn']
    child = tmp_path / 'mine.py'
    child.write_text(f'_base_ = {str(STOCK / base) + ".py"!r}\nmodel = {model!r}\n')
    root = data['cityscapes']
    options = [f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val', 'test')]
    options += [f'{each.split(".")[0]}.persistent_workers=False' for each in options]
    options += ['crop_size=(32,32)', 'image_size=(96,48)', 'max_iters=2', f'data_root={root}']
    arguments = ('--method', 'mean-teacher', '--unlabeled', root / 'more')
    text = ForkedTool(
        'train.py',
        *(child, *arguments, '--print-config', '--work-dir', tmp_path / 'lists'),
        *('--method-options', 'threshold=0.5', '--cfg-options', *options),
        log=tmp_path / 'print.log',
    ).finish()
    printed = tmp_path / 'printed.py'
    printed.write_text(text[re.search('^[a-z_]+ ?=', text, re.M).start() :])
    cfg = Config.fromfile(printed)
    assert cfg.model.threshold == 0.5 and cfg.model.segmentor.backbone.depth == 18
    ForkedTool(
        STOCK.parent / 'tools/train.py', printed, '--work-dir', tmp_path / 'run',
        log=tmp_path / 'run.log',
    ).finish()  # fmt: skip
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
