"""Every method on data sets of another kind: few or many classes, ignored pixels, absent classes.

Composed as by ``tools/train.py CONFIG --method``, with a config that knows mmseg alone.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny_models import NORMALIZE, tiny_segmentor

from mmdmt.composition import compose_method, method_names, method_settings
from mmdmt.engine.runners import MutualTrainingRunner, SemiRunner

STEPS = 4
SIZE = (40, 56)
IMAGES = dict(labeled=4, more=5, val=3)
ONLINE = [name for name in method_names() if 'method' in method_settings(name)]
OFFLINE = [name for name in method_names() if 'mutual' in method_settings(name)]


def make_data(root, num_classes):
    """Rectangles of classes, and an unlabeled border; the last class of many never occurs.

    Of two classes the second one is absent from some images and from all that are validated.
    """
    rng = np.random.default_rng(num_classes)
    for split, count in IMAGES.items():
        names = [f'{split}_{index}' for index in range(count)]
        for index, name in enumerate(names):
            mask = np.zeros(SIZE, np.uint8)
            for _ in range(6 if num_classes > 2 else index % 2 and split != 'val'):
                y, x = rng.integers(0, 24), rng.integers(0, 40)
                mask[y : y + 16, x : x + 16] = rng.integers(1, max(2, num_classes - 1))
            image = (mask[..., None] * 8 + rng.integers(0, 20, (*SIZE, 3))).astype(np.uint8)
            mask[:3] = 0 if num_classes == 2 and split == 'val' else 255
            folder = root / ('more' if split == 'more' else 'images')
            for path, pixels in ((folder, image), (root / 'masks', mask)):
                path.mkdir(parents=True, exist_ok=True)
                if path.name != 'masks' or split != 'more':
                    Image.fromarray(pixels).save(path / f'{name}.png')
        (root / f'{split}.txt').write_text(''.join(f'{name}\n' for name in names))
    return root


def config(root, work_dir, num_classes):
    """Labeled images alone, as a user of mmseg writes it."""
    model = tiny_segmentor(num_classes)
    model['data_preprocessor'] = dict(type='SegDataPreProcessor', size=(32, 32), **NORMALIZE)
    first = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    augment = [
        dict(type='RandomResize', scale=SIZE[::-1], ratio_range=(0.7, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
    ]

    def loader(split, pipeline):
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(root),
            ann_file=f'{split}.txt',
            data_prefix=dict(img_path='images', seg_map_path='masks'),
            img_suffix='.png',
            metainfo=dict(
                classes=[f'class {index}' for index in range(num_classes)],
                palette=[[0, 0, index] for index in range(num_classes)],
            ),
            pipeline=[*pipeline, dict(type='PackSegInputs')],
        )
        return dict(batch_size=2, num_workers=0, dataset=dataset)

    validation = dict(loader('val', first), sampler=dict(type='DefaultSampler', shuffle=False))
    metric = dict(type='IoUMetric', iou_metrics=['mIoU'])
    sampler = dict(type='InfiniteSampler', shuffle=True)
    return Config(
        dict(
            default_scope='mmseg',
            work_dir=str(work_dir),
            model=model,
            train_dataloader=dict(loader('labeled', [*first, *augment]), sampler=sampler),
            **dict.fromkeys(('val_dataloader', 'test_dataloader'), validation),
            **dict.fromkeys(('val_evaluator', 'test_evaluator'), metric),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
            param_scheduler=[
                dict(type='PolyLR', power=0.9, begin=0, end=STEPS, by_epoch=False),
            ],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=STEPS, val_interval=STEPS),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
                logger=dict(type='LoggerHook', interval=1),
            ),
            randomness=dict(seed=1),
        )
    )


@pytest.fixture(scope='module', params=[2, 30])
def data(request, tmp_path_factory):
    """Folder of a data set, and the number of its classes."""
    return make_data(tmp_path_factory.mktemp('data'), request.param), request.param


def composed(data, work_dir, method, **options):
    root, num_classes = data
    cfg = config(root, work_dir, num_classes)
    cfg.experiment_name = f'{work_dir.parent.name}_{work_dir.name}'
    return compose_method(cfg, method, unlabeled=str(root / 'more'), **options)


def trained(cfg):
    torch.set_num_threads(1)
    runner = SemiRunner.from_cfg(cfg)
    runner.train()
    return runner


def history(runner, name):
    return [value for value, _ in zip(*runner.message_hub.log_scalars[name].data)]


@pytest.mark.parametrize('method', ONLINE)
def test_an_online_method_trains_and_resumes(method, data, tmp_path):
    whole = trained(composed(data, tmp_path / 'whole', method))
    scalars = whole.message_hub.log_scalars
    losses = [name for name in scalars if name.startswith('train/') and 'loss' in name]
    assert {'train/loss'} < set(losses) and any('unsup' in name for name in losses)
    for name in losses:
        assert all(math.isfinite(value) for value in history(whole, name)), name
    for health in ('keep_ratio', 'agreement', 'confidence'):
        found = [name for name in scalars if 'unsup' in name and name.endswith(health)]
        assert found
        for name in found:
            assert all(0 <= value <= 1 for value in history(whole, name)), name
    # The mean over the classes that occur: an absent one is no NaN.
    for name in (*whole.model.network_names, ''):
        assert 0 <= scalars[f'val/{name}/mIoU'.replace('//', '/')].current() <= 100
    assert whole.model.num_classes == data[1]
    if data[1] == 30:
        check_resumed(whole.model.state_dict(), method, data, tmp_path)


def check_resumed(expected, method, data, tmp_path):
    """A run that goes on from its second step ends with the same state."""
    resumed = tmp_path / 'resumed'
    resumed.mkdir()
    shutil.copy(tmp_path / 'whole' / 'iter_2.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'iter_2.pth'))
    cfg = composed(data, resumed, method)
    cfg.resume = True
    found = trained(cfg).model.state_dict()
    assert int(found['iterations']) == STEPS
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('method', OFFLINE)
def test_an_offline_method_trains(method, data, tmp_path):
    rounds = [1.0, 1.0] if method == 'st_plus_plus' else [0.5]
    cfg = composed(data, tmp_path / 'chain', method, method_options=dict(ratios=rounds))
    cfg.mutual.supervised.max_iters = cfg.mutual.round.max_iters = STEPS
    torch.set_num_threads(1)
    MutualTrainingRunner(cfg).train()
    final = json.loads((tmp_path / 'chain' / 'final.json').read_text())
    assert 0 <= final['metrics']['mIoU'] <= 100
    ledger = json.loads((tmp_path / 'chain' / 'stages.json').read_text())
    assert all(stage['state'] == 'done' for stage in ledger['stages'].values())
    stages = list((tmp_path / 'chain').glob(f'stage_{len(rounds)}_*/'))
    assert stages
    for stage in stages:
        (log,) = stage.glob('*/vis_data/scalars.json')
        losses = [json.loads(line).get('loss') for line in log.read_text().splitlines()]
        losses = [loss for loss in losses if loss is not None]
        assert len(losses) == STEPS and all(math.isfinite(loss) for loss in losses)
