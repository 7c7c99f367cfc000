"""Methods train on labels of one dataset and images of another, from shipped data configs."""

import os.path as osp

import pytest
import torch
from mmengine.registry import RUNNERS
from mmseg.apis import init_model
from tiny_shift import make_cities, make_gta5, make_synthia, shift_config

from mmdmt.export.segmentor import export_segmentor
from mmdmt.pseudo import PseudoLabelStore

METHODS = {
    'MeanTeacher': dict(threshold=0.1, mix=dict(type='mmdmt.CutMix')),
    'DualTeacher': dict(threshold=0.1, shift_length='epoch'),
    'UniMatch': dict(threshold=0.1, mix=dict(type='mmdmt.CutMix')),
}


@pytest.fixture(scope='module')
def cities(tmp_path_factory):
    torch.set_num_threads(1)
    return make_cities(tmp_path_factory.mktemp('cities'))


@pytest.fixture(scope='module')
def games(tmp_path_factory):
    return make_gta5(tmp_path_factory.mktemp('games'))


def metrics(runner):
    scalars = runner.message_hub.log_scalars
    return {name: scalars[name].current() for name in scalars}


@pytest.mark.parametrize('method', METHODS)
def test_online_methods(method, cities, games, tmp_path):
    cfg = shift_config('gta5_cityscapes', games, cities, tmp_path)
    strong = dict(type='mmdmt.StrongAugment')
    model = dict(type=f'mmdmt.{method}', segmentor=cfg.model, strong=strong, **METHODS[method])
    cfg.model = model
    runner = RUNNERS.build(cfg)
    runner.train()
    found = metrics(runner)
    assert runner.iter == 4 and 0 < found['val/mIoU'] <= 100
    assert any('unsup' in name and 'keep_ratio' in name for name in found)


def test_a_chain_of_mutual_training_labels_the_target(cities, tmp_path):
    games = tmp_path / 'games'
    games.mkdir()
    make_synthia(games)
    cfg = shift_config('synthia_cityscapes', games, cities, tmp_path / 'work')
    cfg.runner_type = 'mmdmt.MutualTrainingRunner'
    cfg.mutual = dict(
        members=[dict(name='a', seed=1), dict(name='b', seed=2)],
        ratios=[1.0],
        supervised=dict(max_iters=2),
        round=dict(max_iters=2, batch_statistics='domain'),
        metric='mIoU_13',
        select='best',
        labeling=dict(pixel_stride=1, num_workers=0, pipeline=cfg.labeling_pipeline),
    )
    entries = RUNNERS.build(cfg).train()
    assert [entry['state'] for entry in entries.values()] == ['done'] * 4
    store = PseudoLabelStore(tmp_path / 'work/stage_1_a/pseudo_labels')
    assert sorted(store.manifest['files']) == [f'ulm/ulm_{number}' for number in range(6)]
    label, _ = store.get(store.manifest['files'][0])
    assert label.shape == (32, 64)

    exported = export_segmentor(
        str(tmp_path / 'work/stage_1_a' / osp.basename(entries['stage_1_a']['checkpoint'])),
        tmp_path / 'exported',
    )
    network = init_model(str(exported.config), str(exported.checkpoint), device='cpu')
    assert type(network).__name__ == 'EncoderDecoder'
