"""Every shipped config of a classifier loads, builds, and is what its file name means."""

import re

import numpy as np
import pytest
import shipped_configs
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope
from shipped_configs import names_of

import mmdmt.classification  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.engine.mutual import build_stage_config_builder
from mmdmt.export.plain import dicts_in
from mmdmt.registry import MODELS

NAMES = [name.split('/')[1] for name in names_of('dmt_classification')]
NAME = re.compile(
    r'(?P<method>supervised|cl|dmt)_wrn-(?P<depth>\d+)-(?P<widen>\d)_(?P<labels>\d+|labeled)'
    r'_(?P<data>cifar10|folder)-(?P<size>\d+)x(?P=size)(?P<published>_published)?'
)
CHAINS = [name for name in NAMES if not name.startswith('supervised')]


def load(name):
    return shipped_configs.load(f'dmt_classification/{name}')


def read(name):
    return shipped_configs.read(f'dmt_classification/{name}')


@pytest.mark.parametrize('name', NAMES)
def test_config_is_what_its_name_says(name):
    cfg, parts = load(name), NAME.fullmatch(name)
    assert parts, f'{name} does not follow the naming rule'
    assert cfg.default_scope == 'mmpretrain'
    assert {'mmdmt', 'mmdmt.classification'} <= set(cfg.custom_imports['imports'])
    backbone = cfg.model.backbone
    assert (backbone.depth, backbone.widen_factor) == (int(parts['depth']), int(parts['widen']))
    sources = cfg.train_dataloader.dataset.datasets
    assert len(sources) == (1 if parts['method'] == 'supervised' else 2)
    for source, kind in zip(sources, ('labeled', 'unlabeled')):
        lists = {
            'cifar10': f'splits/{parts["labels"]}/seed_1/{kind}.txt',
            'folder': f'splits/{kind}.txt',
        }
        assert source.ann_file == lists[parts['data']]
    crops = [step.crop_size for step in sources[0].pipeline if step.type == 'RandomCrop']
    assert np.unique(crops).tolist() == [int(parts['size'])]
    assert sources[0].pipeline[-1].algorithm_keys == ('soft_label',)


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('supervised')])
def test_the_network_fits_and_classifies(name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    assert model.backbone.out_channels == model.head.in_channels
    assert not model.gamma1 and not model.gamma2


@pytest.mark.parametrize('name', CHAINS)
def test_the_stages_of_a_chain(name):
    cfg, parts = load(name), NAME.fullmatch(name)
    builder = build_stage_config_builder(cfg)
    stages = [builder.build(s, '/work_dir/s', 'a.pth', 'b.pth') for s in builder.plan.stages]
    gamma = [stage.model.gamma1 for stage in stages]
    assert gamma[0] == 0
    assert all((value > 0) == (parts['method'] == 'dmt') for value in gamma[1:])
    assert all(stage.load_from is None for stage in stages[1:])
    for stage in stages:
        assert stage.param_scheduler[-1].end == stage.train_cfg.max_iters
        assert stage.train_cfg.val_interval <= stage.train_cfg.max_iters
        assert stage.train_dataloader.batch_size == stage.train_dataloader.sampler.batch_size


def test_published_hyper_parameters():
    """Of the published scripts for 1000 labels."""
    cfg = load('dmt_wrn-28-2_1000_cifar10-32x32')
    builder = build_stage_config_builder(cfg)
    first, *rounds = [builder.build(s, '/s', 'a.pth', 'b.pth') for s in builder.plan.stages]
    assert builder.plan.ratios == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert first.train_cfg.max_iters == 2120 * 2 and first.optim_wrapper.optimizer.lr == 0.2
    # 750 passes over the selected images, 496 in a batch
    assert [r.train_cfg.max_iters for r in rounds] == [15000, 30000, 45000, 59250, 74250]
    for stage in rounds:
        assert stage.optim_wrapper.optimizer.lr == 0.1
        assert stage.train_dataloader.sampler.source_ratio == [16, 496]
        assert stage.model.gamma1 == stage.model.gamma2 == 4
    optimizer = first.optim_wrapper.optimizer
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    assert first.model.mixup_alpha == 0.75 and first.train_dataloader.batch_size == 512
    mean, std = (np.array(first.model.data_preprocessor[key]) / 255 for key in ('mean', 'std'))
    np.testing.assert_allclose(mean, [0.49137, 0.48235, 0.44667], atol=1e-8)
    np.testing.assert_allclose(std, [0.24706, 0.24353, 0.26157], atol=1e-8)
    full = build_stage_config_builder(load('dmt_wrn-28-2_4000_cifar10-32x32'))
    stage = full.build(full.plan.stages[1], '/s', 'a.pth', 'b.pth')
    assert stage.train_dataloader.sampler.source_ratio == [64, 448]


def test_published_switches():
    own = load('dmt_wrn-28-2_1000_cifar10-32x32')
    published = load('dmt_wrn-28-2_1000_cifar10-32x32_published')
    assert own.default_hooks.ema.momentum == 0.999 and own.model.update_bn_twice is False
    hook = published.default_hooks.ema
    assert (hook.momentum, hook.buffers, hook.warmup) == (0.001, 'copy', False)
    assert published.mutual.pseudo_loss.update_bn_twice is True


def test_equal_steps_on_the_cpu_benchmark():
    baseline = load('supervised_wrn-16-1_4000_cifar10-16x16').train_cfg.max_iters
    for method in ('cl', 'dmt'):
        mutual = load(f'{method}_wrn-16-1_4000_cifar10-16x16').mutual
        assert mutual.supervised.max_iters + sum(mutual.round.max_iters) == baseline


@pytest.mark.parametrize('size', [32, 16])
def test_the_pipeline_gives_normal_images(size):
    name = 'wrn-28-2_1000_cifar10-32x32' if size == 32 else 'wrn-16-1_4000_cifar10-16x16'
    pipeline = load(f'supervised_{name}').train_dataloader.dataset.datasets[0].pipeline
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = Compose([TRANSFORMS.build(step) for step in pipeline])
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    soft = np.full(10, 0.1, np.float32)
    np.random.seed(0)
    for _ in range(40):  # every transform of the list, most likely
        out = steps(dict(img=image.copy(), gt_label=3, soft_label=soft))
        assert out['inputs'].shape == (3, size, size)
        assert out['data_samples'].gt_label.tolist() == [3]
        assert out['data_samples'].soft_label is soft


def test_settings_of_own_images_are_set_in_one_place():
    cfg = read('dmt_wrn-28-2_labeled_folder-64x64')
    cfg.merge_from_dict(dict(data_root='/mine', image_size=(40, 40), crop_size=(36, 36)))
    resolve_config(cfg)
    for source in cfg.train_dataloader.dataset.datasets:
        assert source.data_root == source.dataset.data_root == '/mine'
        steps = {step.type: step for step in source.pipeline}
        assert tuple(steps['Resize'].scale) == (40, 40)
        assert tuple(steps['RandomCrop'].crop_size) == (36, 36)
    assert cfg.test_dataloader.dataset.data_root == '/mine'


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('supervised')])
def test_classes_length_and_validation_list_are_set_in_one_place(name):
    cfg = read(name)
    metainfo = dict(classes=list('abcde'))
    own = dict(num_classes=5, max_iters=77, val_list='mine.txt', metainfo=metainfo)
    cfg.merge_from_dict(dict(own, image_size=(12, 12), crop_size=(8, 8)))
    resolve_config(cfg)
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    parts = list(dicts_in([loader.dataset.to_dict() for loader in loaders]))
    assert [
        part['metainfo'] for part in parts if 'data_root' in part and 'dataset' not in part
    ] == [metainfo] * 3
    assert {tuple(part['scale']) for part in parts if 'scale' in part} == {(12, 12)}
    assert {tuple(part['crop_size']) for part in parts if 'crop_size' in part} == {(8, 8)}
    assert cfg.model.head.num_classes == 5
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 77
    assert cfg.val_dataloader.dataset.ann_file == 'mine.txt'


@pytest.mark.parametrize('name', CHAINS)
def test_a_length_that_no_stage_takes_is_refused(name):
    cfg = read(name)
    cfg.max_iters = 77
    with pytest.raises(ValueError, match=r'`max_iters` is set to 77.*mutual\.round\.max_iters'):
        resolve_config(cfg)


def test_images_of_cifar_are_rgb_and_files_are_bgr():
    """RandAugment, whose list depends on their size, and the normalization must agree on it."""
    for name in NAMES:
        cfg = load(name)
        (augment,) = [
            step
            for step in cfg.train_dataloader.dataset.datasets[0].pipeline
            if step.type == 'mmdmt.RandAugment'
        ]
        # As published where the pixels of its translations fit.
        assert augment.policies == ('released' if '32x32' in name else 'paper')
        assert (augment.num_policies, augment.max_magnitude) == (1, 10)
        rgb = augment.get('channel_order') == 'rgb'
        assert rgb is ('cifar10' in name) and cfg.model.data_preprocessor.to_rgb is not rgb


def test_the_classifier_starts_as_torch_initializes_it():
    """As published: uniform with std 0.05, where mmpretrain's default is a normal of 0.01."""
    head = load('dmt_wrn-28-2_1000_cifar10-32x32').model.head
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = MODELS.build(dict(head, num_classes=500))
    head.init_weights()
    assert head.fc.weight.std().item() == pytest.approx((3 * 128) ** -0.5, rel=0.02)
