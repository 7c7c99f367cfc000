"""Chains of ST and ST++, with the settings of their method bases, also killed and on two ranks."""

import json

import pytest
import torch
from forked_tool import forked_ranks
from interruptions import add_hook, kill_held, make_hook, train
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_models import tiny_segmentor
from tiny_project import ROOT, base_config, load_config, make_tree, mutual, write_config

from mmdmt.engine.mutual.stage_config import StageConfigBuilder
from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.registry import RUNNERS, TASK_UTILS

pytestmark = pytest.mark.usefixtures('unformatted_configs')

STAGES = ['stage_0_a', 'stage_1_a', 'stage_2_a']


def chain(tree, work_dir, method='st_plus_plus', **changes):
    """The shipped method with short stages, of which one checkpoint is kept."""
    path = ROOT / 'configs' / '_base_' / 'methods' / f'{method}.py'
    settings = Config.fromfile(str(path)).mutual.to_dict()
    settings['supervised'] = dict(max_iters=4)
    settings['round'].update(dict(max_iters=4, source_ratio=[1, 1]), **changes)
    settings['labeling'].update(num_workers=0)
    cfg = base_config(tree, work_dir)
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = 1
    return mutual(cfg, **settings)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


@pytest.fixture(scope='module')
def finished(unformatted_configs, tree, tmp_path_factory):
    """An uninterrupted chain of ST++: (work dir, ledger entries)."""
    work_dir = tmp_path_factory.mktemp('chain')
    torch.set_num_threads(1)
    return work_dir, RUNNERS.build(load_config(chain(tree, work_dir), work_dir / 'c.py')).train()


def weights(path):
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


def assert_same_products(one, two):
    for name in STAGES:
        first, second = (weights(folder / name / 'iter_4.pth') for folder in (one, two))
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert ranking_of(one)['images'] == ranking_of(two)['images']


def ranking_of(work_dir):
    return json.loads((work_dir / 'stage_1_a' / 'reliability.json').read_text())


def manifest_of(work_dir, stage):
    return json.loads((work_dir / stage / 'pseudo_labels' / 'manifest.json').read_text())


def test_checkpoints_of_a_third_and_two_thirds_are_kept(finished):
    names = sorted(path.name for path in (finished[0] / 'stage_0_a').glob('iter_*.pth'))
    assert names == ['iter_1.pth', 'iter_3.pth', 'iter_4.pth']
    assert len(list((finished[0] / 'stage_1_a').glob('iter_*.pth'))) == 1


def test_the_reliable_half_comes_first(finished):
    work_dir, _ = finished
    ranking = ranking_of(work_dir)
    assert [c['file'] for c in ranking['checkpoints']] == ['iter_1.pth', 'iter_3.pth', 'iter_4.pth']
    scores = [score for _, score in ranking['images']]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    reliable = (work_dir / 'stage_1_a' / 'reliable.txt').read_text().split()
    assert reliable == [name for name, _ in ranking['images'][:3]]
    assert sorted(manifest_of(work_dir, 'stage_1_a')['files']) == sorted(reliable)
    log = ''.join(path.read_text() for path in (work_dir / 'stage_1_a').rglob('*.log'))
    assert 'Reliability of 6 images' in log and ranking['images'][-1][0] in log


def test_the_other_half_is_labeled_by_the_network_of_the_first(finished):
    work_dir, entries = finished
    manifest = manifest_of(work_dir, 'stage_2_a')
    assert len(manifest['files']) == 6 and manifest['kept_share'] == 1
    identities = [entries[name]['checkpoint_sha256'] for name in STAGES]
    assert manifest['checkpoint']['sha256'] == identities[1]
    assert manifest['labels_before']['sha256'] == identities[0]
    stores = [PseudoLabelStore(work_dir / name / 'pseudo_labels') for name in STAGES[1:]]
    for name in stores[0].manifest['files']:
        for one, two in zip(stores[0].get(name), stores[1].get(name)):
            assert (one == two).all()


def test_each_network_is_a_fresh_one(tree, tmp_path):
    """With a learning rate of 0 it is what it started from, which is not the network before."""
    torch.manual_seed(7)
    initial = build_segmentor(tiny_segmentor()).state_dict()
    torch.save(dict(state_dict=initial), tmp_path / 'initial.pth')
    cfg = chain(tree, tmp_path, 'st', lr=0.0, max_iters=2)
    cfg['load_from'] = str(tmp_path / 'initial.pth')
    RUNNERS.build(load_config(cfg, tmp_path / 'c.py')).train()
    before, fresh = (
        weights(tmp_path / path) for path in ('stage_0_a/iter_4.pth', 'stage_1_a/iter_2.pth')
    )
    key = 'decode_head.conv_seg.weight'
    assert torch.equal(fresh[key], initial[key]) and not torch.equal(before[key], initial[key])


def test_without_initial_weights_each_network_is_drawn_anew(tree, tmp_path):
    cfg = chain(tree, tmp_path, lr=0.0)
    cfg['mutual']['supervised']['lr'] = 0.0
    RUNNERS.build(load_config(cfg, tmp_path / 'c.py')).train()
    drawn = [weights(tmp_path / s / 'iter_4.pth')['decode_head.conv_seg.weight'] for s in STAGES]
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    'moment',
    [
        'stage_0_a/iter_3.pth',  # a milestone
        'stage_1_a/reliability.json',
        'maps/{}.plc',  # while the first half is labeled
        'stage_1_a/iter_2.pth',  # the labels are there, no checkpoint of the fresh network is
        'stage_2_a/iter_4.pth',
    ],
)
def test_a_killed_chain_ends_the_same(finished, tree, tmp_path, moment):
    names = (finished[0] / 'stage_1_a' / 'reliable.txt').read_text().split()
    config = write_config(add_hook(chain(tree, tmp_path)), tmp_path / 'chain.py')
    kill_held(make_hook(tree), config, f'writing {moment.format(sorted(names)[1])}')
    train(tree, config, '--resume').finish()
    assert_same_products(tmp_path, finished[0])


def test_the_chain_runs_on_two_processes(finished, tree, tmp_path):
    config = write_config(chain(tree, tmp_path), tmp_path / 'chain.py')
    for tool in forked_ranks('train.py', config, log=tmp_path / 'rank.log'):
        tool.finish()
    ranking = ranking_of(tmp_path)
    reliable = (tmp_path / 'stage_1_a' / 'reliable.txt').read_text().split()
    assert len(ranking['images']) == 6 and len(reliable) == 3
    assert len(manifest_of(tmp_path, 'stage_2_a')['files']) == 6
    config = Config.fromfile(str(tmp_path / 'stage_1_a' / 'config.py'))
    ranker = dict(config.default_hooks.pseudo_labels.ranker, out=str(tmp_path / 'again'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        again = TASK_UTILS.build(ranker).run()
    assert ranking['images'] == [list(row) for row in again]


def test_stages_can_be_run_one_by_one(finished, tree, tmp_path):
    config = write_config(chain(tree, tmp_path), tmp_path / 'chain.py')
    for stage in STAGES:
        cfg = Config.fromfile(str(config))
        cfg.stage = stage
        RUNNERS.build(cfg).train()
    assert_same_products(tmp_path, finished[0])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(images='best'), r"mutual\.round\.images.*'best'"),
        (dict(images=['reliable']), r'mutual\.round\.images` has 1 words for 2 ratios'),
    ],
)
def test_wrong_settings_are_refused(tree, tmp_path, change, message):
    cfg = Config(chain(tree, tmp_path, **change))
    with pytest.raises(ValueError, match=message):
        StageConfigBuilder(cfg)


def test_what_round_1_could_not_do_is_refused_before_round_0(tree, tmp_path):
    cfg = chain(tree, tmp_path / 'a')
    cfg['mutual']['supervised']['max_iters'] = 2
    (tmp_path / 'a').mkdir()
    with pytest.raises(ValueError, match=r'stage_0_a has `max_iters`=2.*at least 3'):
        RUNNERS.build(load_config(cfg, tmp_path / 'a' / 'c.py')).train()
    cfg = chain(tree, tmp_path / 'a')
    cfg['train_dataloader']['dataset']['datasets'][1]['type'] = 'BaseSegDataset'
    with pytest.raises(ValueError, match=r"needs unlabeled images.*'BaseSegDataset'"):
        RUNNERS.build(load_config(cfg, tmp_path / 'a' / 'c.py')).train()
    assert not (tmp_path / 'a' / 'stage_0_a').exists()
