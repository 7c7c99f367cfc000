"""A tiny dataset on disk and whole configs that train on it in seconds."""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image
from tiny_models import NORMALIZE, NUM_CLASSES, tiny_segmentor

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32
_numbers = itertools.count()
#: For processes that tests start with a Python of their own, see `unformatted_configs`.
UNFORMATTED = """
from yapf.yapflib import yapf_api
yapf_api.FormatCode = lambda text, **options: (text, True)
"""
PALETTE = [[128, 0, 0], [0, 128, 0], [0, 0, 128], [128, 128, 0]]


def make_tree(root, labeled=4, unlabeled=6, val=3, seed=0):
    """Write images of colored rectangles, masks (none for unlabeled images) and lists."""
    rng = np.random.default_rng(seed)
    root = Path(root)
    for split, count in (('labeled', labeled), ('unlabeled', unlabeled), ('val', val)):
        names = [f'{split}_{index}' for index in range(count)]
        for name in names:
            _write_scene(root, name, rng, with_mask=split != 'unlabeled')
        (root / f'{split}.txt').write_text('\n'.join(names) + '\n')
    return root


def _write_scene(root, name, rng, with_mask):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for class_id in range(1, NUM_CLASSES):
        y, x = rng.integers(0, SIZE - 12, 2)
        mask[y : y + 12, x : x + 12] = class_id
    colors = np.array([[60, 60, 60], [200, 50, 50], [50, 200, 50], [50, 50, 200]])
    image = (colors[mask] + rng.normal(0, 20, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    for folder in ('img', 'ann'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / 'img' / f'{name}.png')
    if with_mask:
        Image.fromarray(mask).save(root / 'ann' / f'{name}.png')


def _dataset(root, split, pipeline, labeled=True):
    cfg = dict(
        type='BaseSegDataset' if labeled else 'mmdmt.UnlabeledDataset',
        data_root=str(root),
        ann_file=f'{split}.txt',
        img_suffix='.png',
        data_prefix=dict(img_path='img', seg_map_path='ann') if labeled else dict(img_path='img'),
        pipeline=pipeline,
    )
    if labeled:
        cfg.update(metainfo=dict(classes=list('abcd'), palette=PALETTE), seg_map_suffix='.png')
    return cfg


def base_config(root, work_dir, max_iters=8, num_workers=0, interval=2):
    """An ordinary labeled-and-unlabeled training config of a plain segmentor, as a dict."""
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    augment = [
        dict(type='RandomResize', scale=(SIZE, SIZE), ratio_range=(0.8, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(24, 24), cat_max_ratio=1.0),
        dict(type='RandomFlip', prob=0.5),
        dict(type='mmdmt.PackSemiInputs'),
    ]
    annotations = dict(type='LoadAnnotations')
    datasets = [
        _dataset(root, 'labeled', [load, annotations, *augment]),
        _dataset(root, 'unlabeled', [load, *augment], labeled=False),
    ]
    test_loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=_dataset(root, 'val', [load, annotations, dict(type='PackSegInputs')]),
    )
    model = tiny_segmentor()
    model['data_preprocessor'] = dict(type='SegDataPreProcessor', size=(24, 24), **NORMALIZE)
    return dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=4, source_ratio=[1, 1]),
            dataset=dict(type='mmdmt.SemiDataset', datasets=datasets),
        ),
        val_dataloader=test_loader,
        test_dataloader=test_loader,
        val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        param_scheduler=[dict(type='PolyLR', power=0.9, begin=0, end=max_iters, by_epoch=False)],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        default_hooks=dict(checkpoint=dict(interval=interval), logger=dict(interval=1)),
    )


def labeled_only(cfg):
    """Turn a config into labeled-only training."""
    loader = cfg['train_dataloader']
    loader['dataset']['datasets'] = loader['dataset']['datasets'][:1]
    loader['sampler']['source_ratio'] = [1]
    return cfg


def online(cfg, kind, **settings):
    """Turn a config into training with an online method."""
    settings.setdefault('strong', dict(type='mmdmt.StrongAugment'))
    cfg['model'] = dict(type=kind, segmentor=cfg['model'], **settings)
    return cfg


def mean_teacher(cfg, **settings):
    """Turn a config into Mean Teacher training."""
    return online(cfg, 'mmdmt.MeanTeacher', **dict(dict(threshold=0.3), **settings))


def mutual(cfg, **settings):
    """Turn a config into mutual training of two members over two short rounds."""
    settings.setdefault('members', [dict(name='a', seed=1), dict(name='b', seed=2)])
    settings.setdefault('ratios', [0.5, 1.0])
    settings.setdefault('round', dict(max_iters=4, source_ratio=[1, 3]))
    settings.setdefault('labeling', dict(pixel_stride=1, num_workers=0))
    cfg['runner_type'] = 'mmdmt.MutualTrainingRunner'
    cfg['mutual'] = settings
    return cfg


def write_config(cfg, path, runtime='default_runtime.py'):
    """Write a config file that inherits the project's default runtime, or another one."""
    text = Config(cfg).pretty_text
    base = ROOT / 'configs' / '_base_' / runtime
    Path(path).write_text(f'_base_ = {str(base)!r}\n{text}')
    return Path(path)


def load_config(cfg, path, runtime='default_runtime.py'):
    """Write a config file and read it as the tools do, as an experiment of its own.

    Two runners of one name that are built within a second would share mmengine's logger.
    """
    read = Config.fromfile(str(write_config(cfg, path, runtime)))
    read.experiment_name = f'test_{next(_numbers)}'
    return read


def environment(**extra):
    """Environment of a child process: this Python and checkout first, one thread, no GPU."""
    paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    programs = [str(Path(sys.executable).parent), os.environ.get('PATH', '')]
    return dict(
        os.environ,
        PATH=os.pathsep.join(programs),
        PYTHONPATH=os.pathsep.join(path for path in paths if path),
        OMP_NUM_THREADS='1',
        OMP_WAIT_POLICY='PASSIVE',
        CUDA_VISIBLE_DEVICES='-1',
        **extra,
    )
