"""What a round reports of itself, as it arrives in visualization backends."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_project import base_config, load_config, make_tree, mutual

from mmdmt.registry import RUNNERS

pytestmark = pytest.mark.usefixtures('unformatted_configs')

HEALTH = {'pseudo_keep_ratio', 'pseudo_disagreement', 'pseudo_student_wins', 'mean_weight'}
PER_CLASS = {
    f'pseudo_labels/{kind}/{name}' for kind in ('share', 'kept', 'confidence') for name in 'abcd'
}


@pytest.fixture(scope='module')
def stage(unformatted_configs, tmp_path_factory):
    """Folder of a round of two steps of self-training without weights, with two backends."""
    work_dir = tmp_path_factory.mktemp('chain')
    cfg = mutual(
        base_config(make_tree(work_dir / 'tree'), work_dir, max_iters=1),
        members=[dict(name='a')],
        ratios=[0.5],
        round=dict(max_iters=2, source_ratio=[1, 3]),
        pseudo_loss=dict(type='mmdmt.DynamicSelfLoss', gamma=0.0),
    )
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    cfg['visualizer'] = dict(type='SegLocalVisualizer', vis_backends=backends)
    torch.set_num_threads(1)
    RUNNERS.build(load_config(cfg, work_dir / 'chain.py')).train()
    return work_dir / 'stage_1_a'


def tensorboard_scalars(folder):
    """Values by name, in the order of steps."""
    (path,) = {path.parent for path in folder.rglob('events.out.tfevents.*')}
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def test_tensorboard_gets_health_of_every_step_and_of_every_class(stage):
    scalars = tensorboard_scalars(stage)
    assert set(scalars) >= HEALTH | PER_CLASS
    assert all(len(scalars[key]) == 2 for key in HEALTH)
    assert all(math.isfinite(value) for key in HEALTH | PER_CLASS for value in scalars[key])
    assert sum(scalars[f'pseudo_labels/share/{name}'][0] for name in 'abcd') == pytest.approx(1)
    assert all(0 < value <= 1 for value in scalars['pseudo_keep_ratio'])
    assert all(0 <= value <= 1 for key in HEALTH for value in scalars[key])


def test_backends_get_the_same(stage):
    expected = {}
    (path,) = stage.rglob('scalars.json')
    for line in path.read_text().splitlines():
        for key, value in json.loads(line).items():
            expected.setdefault(key, []).append(value)
    scalars = tensorboard_scalars(stage)
    for key in HEALTH | PER_CLASS:
        assert scalars[key] == pytest.approx(expected[key])
