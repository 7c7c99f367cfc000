"""The loops of several networks, with a model of one and with one that predicts by an average."""

import pytest
from tiny_project import base_config, labeled_only, load_config, make_tree, online

from mmdmt.engine.runners import SemiRunner

pytestmark = pytest.mark.usefixtures('unformatted_configs')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def evaluate(cfg, folder, loop):
    cfg = load_config(cfg, folder / 'tiny.py')
    cfg.test_cfg = dict(type=loop)
    return SemiRunner.from_cfg(cfg).test()


def test_a_single_network_is_tested_as_by_mmengine(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path, max_iters=1))
    found = evaluate(cfg, tmp_path, 'mmdmt.NetworksTestLoop')
    assert found == evaluate(cfg, tmp_path, 'TestLoop')
    assert 0 <= found['mIoU'] <= 100


def test_all_networks_and_the_average_that_predicts(tree, tmp_path):
    cfg = base_config(tree, tmp_path, max_iters=1)
    online(cfg, 'mmdmt.CrossTeacher', predict_on='teacher_average')
    found = evaluate(cfg, tmp_path, 'mmdmt.NetworksTestLoop')
    names = {key.split('/')[0] for key in found if '/' in key}
    networks = {f'{kind}_{side}' for kind in ('student', 'teacher') for side in 'lr'}
    assert names == networks | {'teacher_average'}
    assert found['mIoU'] == found['teacher_average/mIoU']
