"""A tiny dataset of image folders and whole configs that train a classifier on it in seconds."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 8
RUNTIME = 'classification_runtime.py'
CLASSES = ('blue', 'green', 'red')
PER_CLASS = 12


def make_folders(root, per_class=PER_CLASS, seed=0, noise=40):
    """Noisy images of one color a class; lists of 2 labeled, 8 unlabeled, 2 validation a class."""
    rng = np.random.default_rng(seed)
    root = Path(root)
    lists = dict(labeled=[], unlabeled=[], val=[])
    for part in ('train', 'test'):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for index in range(per_class):
                image = rng.normal(100, noise, (SIZE, SIZE, 3))
                image[..., 2 - number] += 60
                file = f'{name}/{index:03}.png'
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / part / file)
                if part == 'train':
                    kind = 'labeled' if index < 2 else 'val' if index < 4 else 'unlabeled'
                    lists[kind].append(file)
    for kind, names in lists.items():
        (root / f'{kind}.txt').write_text('\n'.join(names) + '\n')
    return root


def make_cifar(root, per_file=4):
    """CIFAR-10 as mmpretrain reads it, with random images of the first classes in turn."""
    folder = Path(root) / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f'data_batch_{number}' for number in range(1, 6)] + ['test_batch']:
        data = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = [index % 10 for index in range(per_file)]
        (folder / name).write_bytes(pickle.dumps(dict(data=data, labels=labels)))
    (folder / 'batches.meta').write_bytes(pickle.dumps(dict(label_names=list('abcdefghij'))))
    return Path(root)


def tiny_classifier(**settings):
    """A WRN-10-1 with a classifying head, on mmpretrain's preprocessor."""
    return dict(
        type='mmdmt.MutualClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor', mean=[120] * 3, std=[60] * 3, to_rgb=True
        ),
        backbone=dict(type='mmdmt.WideResNet', depth=10, widen_factor=1),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=64),
        **settings,
    )


def listed(root, kind, pipeline, **settings):
    """Images that a list of the folder names."""
    inner = dict(type='mmpretrain.CustomDataset', data_root=str(root), data_prefix='train')
    return dict(
        type='mmdmt.ListedDataset',
        dataset=inner,
        data_root=str(root),
        ann_file=f'{kind}.txt',
        pipeline=pipeline,
        **settings,
    )


def classification_config(root, work_dir, max_iters=4, interval=2):
    """An ordinary config of a classifier with a labeled and an unlabeled source, as a dict."""
    load = dict(type='LoadImageFromFile')
    pack = dict(type='PackInputs', algorithm_keys=('soft_label',))
    augment = dict(type='mmdmt.RandAugment', policies=[dict(type='Invert', prob=0.5)])
    train = [load, dict(type='RandomFlip', prob=0.5), augment, pack]
    sources = [
        listed(root, 'labeled', train),
        listed(root, 'unlabeled', train, labeled=False),
    ]
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    test_pipeline = [load, dict(type='PackInputs')]
    test = dict(
        type='mmpretrain.CustomDataset',
        data_root=str(root),
        data_prefix='test',
        pipeline=test_pipeline,
    )
    return dict(
        model=tiny_classifier(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=4, source_ratio=[1, 1]),
            dataset=dict(type='mmdmt.SemiDataset', datasets=sources),
        ),
        val_dataloader=dict(loader, dataset=listed(root, 'val', test_pipeline)),
        test_dataloader=dict(loader, dataset=test),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        param_scheduler=[
            dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=max_iters, by_epoch=False)
        ],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        default_hooks=dict(
            checkpoint=dict(interval=interval), logger=dict(interval=1), ema=dict(momentum=0.9)
        ),
    )


def mutual_classification(cfg, **settings):
    """Turn a config into two short rounds of one member."""
    settings.setdefault('members', [dict(name='a', seed=1)])
    settings.setdefault('ratios', [0.5, 1.0])
    settings.setdefault('round', dict(max_iters=[2, 4], source_ratio=[1, 3]))
    settings.setdefault('labeling', dict(num_workers=0))
    settings.setdefault('pseudo_loss', dict(gamma1=1.0, gamma2=1.0))
    cfg['runner_type'] = 'mmdmt.MutualTrainingRunner'
    cfg['mutual'] = dict(task='classification', **settings)
    return cfg
