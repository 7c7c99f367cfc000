"""The chain of mutual training, in this process and as a process that is killed."""

import json
import shutil

import pytest
import torch
from forked_tool import ForkedTool, forked_ranks
from interruptions import add_hook, kill_held, make_hook, train
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_models import tiny_segmentor
from tiny_project import (
    base_config,
    load_config,
    make_tree,
    mutual,
    write_config,
)

from mmdmt.datasets.checks.problems import DatasetError
from mmdmt.engine.mutual import LedgerMismatchError
from mmdmt.engine.runners import MutualTrainingRunner
from mmdmt.models.methods.base import build_segmentor
from mmdmt.registry import RUNNERS, TASK_UTILS

pytestmark = pytest.mark.usefixtures('unformatted_configs')

STAGES = [f'stage_{r}_{m}' for r in range(3) for m in 'ab']


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def chain(tree, work_dir, num_workers=0, **settings):
    """Two members over two rounds, of four steps each."""
    settings.setdefault('supervised', dict(max_iters=4))
    return mutual(base_config(tree, work_dir, num_workers=num_workers), **settings)


@pytest.fixture(scope='module')
def finished(unformatted_configs, tree, tmp_path_factory):
    """An uninterrupted chain: (work dir, ledger entries)."""
    work_dir = tmp_path_factory.mktemp('chain')
    torch.set_num_threads(1)
    cfg = load_config(chain(tree, work_dir), work_dir / 'chain.py')
    runner = RUNNERS.build(cfg)
    return work_dir, runner.train()


def state_dict(path):
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


def assert_same_weights(one, two):
    one, two = state_dict(one), state_dict(two)
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def test_every_stage_is_run_and_recorded(finished):
    work_dir, entries = finished
    assert set(entries) == set(STAGES)
    for name in STAGES:
        entry = entries[name]
        assert entry['state'] == 'done' and 0 <= entry['metrics']['mIoU'] <= 100
        assert (work_dir / entry['checkpoint']).exists() and 'best' not in entry['checkpoint']
    assert json.loads((work_dir / 'stages.json').read_text())['stages'] == entries


def test_products_are_ordinary_checkpoints(finished):
    work_dir, entries = finished
    model = build_segmentor(tiny_segmentor())
    missing, unexpected = model.load_state_dict(
        state_dict(work_dir / entries['stage_2_a']['checkpoint'])
    )
    assert not missing and not unexpected


def test_labels_come_from_the_other_member_of_the_round_before(finished):
    work_dir, entries = finished
    for stage, teacher in (('stage_1_a', 'stage_0_b'), ('stage_2_b', 'stage_1_a')):
        manifest = json.loads((work_dir / stage / 'pseudo_labels' / 'manifest.json').read_text())
        size = entries[teacher]['checkpoint_bytes']
        assert manifest['checkpoint']['bytes'] == size
        assert manifest['num_images'] == 6
    ratios = [
        json.loads((work_dir / f'stage_{r}_a' / 'pseudo_labels' / 'manifest.json').read_text())
        for r in (1, 2)
    ]
    assert ratios[0]['kept_share'] < ratios[1]['kept_share'] == 1.0


def test_members_end_with_different_weights(finished):
    work_dir, entries = finished
    a, b = (state_dict(work_dir / entries[f'stage_2_{m}']['checkpoint']) for m in 'ab')
    assert not torch.equal(a['decode_head.conv_seg.weight'], b['decode_head.conv_seg.weight'])


def test_a_finished_chain_is_not_run_again(finished, tree):
    work_dir, entries = finished
    cfg = load_config(chain(tree, work_dir), work_dir / 'chain.py')
    assert MutualTrainingRunner.from_cfg(cfg).train() == entries


def test_a_changed_config_is_refused(finished, tree):
    work_dir, _ = finished
    cfg = load_config(chain(tree, work_dir), work_dir / 'chain.py')
    cfg.optim_wrapper.optimizer.lr = 0.01
    with pytest.raises(LedgerMismatchError, match=r'optim_wrapper\.optimizer\.lr: 0\.05 -> 0\.01'):
        MutualTrainingRunner.from_cfg(cfg).train()


def test_the_stage_config_tests_the_stage(finished):
    work_dir, entries = finished
    stage = work_dir / 'stage_2_a'
    cfg = Config.fromfile(str(stage / 'config.py'))
    cfg.update(load_from=str(stage / 'iter_4.pth'), resume=False)
    metrics = RUNNERS.build(cfg).test()
    assert metrics['mIoU'] == pytest.approx(entries['stage_2_a']['metrics']['mIoU'])


def test_the_config_of_any_stage_can_be_had_before_it_is_run(finished, tree, tmp_path):
    """Its text runs by itself, and is what the chain runs."""
    work_dir, entries = finished
    cfg = load_config(chain(tree, tmp_path), tmp_path / 'chain.py')
    runner = MutualTrainingRunner.from_cfg(cfg)
    planned = runner.stage_config('round_2.a')
    assert planned.load_from == str(tmp_path / 'stage_1_a' / 'iter_4.pth')
    hook = planned.default_hooks.pseudo_labels
    assert hook.checkpoint == str(tmp_path / 'stage_1_b' / 'iter_4.pth')
    assert not list(tmp_path.glob('stage*')), 'something was written'
    text = runner.stage_config('round_0.a').pretty_text
    (tmp_path / 'alone.py').write_text(text)
    alone = Config.fromfile(str(tmp_path / 'alone.py'))
    assert alone.runner_type == 'mmdmt.SemiRunner' and alone.custom_imports.imports == ['mmdmt']
    alone.experiment_name = 'alone'
    RUNNERS.build(alone).train()
    path = entries['stage_0_a']['checkpoint']
    assert_same_weights(tmp_path / path, work_dir / path)
    cfg.mutual.select = 'best'
    best = MutualTrainingRunner.from_cfg(cfg).stage_config('round_1.a')
    assert best.load_from == str(tmp_path / 'stage_0_a' / 'best_mIoU_iter_*.pth')


def test_a_stage_alone_gives_what_the_chain_gives(finished, tree, tmp_path):
    """Two machines can share a round: each stage depends only on the round before."""
    work_dir, entries = finished
    cfg = chain(tree, tmp_path)
    config = write_config(cfg, tmp_path / 'chain.py')
    for stage in ('round_0.b', 'round_0.a'):  # the other order than the chain's
        run_stage(config, stage)
    run_stage(config, 'round_1.b')
    for name in ('stage_0_a', 'stage_0_b', 'stage_1_b'):
        path = entries[name]['checkpoint']
        assert_same_weights(tmp_path / path, work_dir / path)
    with pytest.raises(RuntimeError, match=r'stage_1_a is pending'):
        run_stage(config, 'round_2.a')


def run_stage(config, stage):
    cfg = Config.fromfile(str(config))
    cfg.stage = stage
    RUNNERS.build(cfg).train()


def test_best_on_validation_can_be_what_goes_on(tree, tmp_path):
    cfg = chain(tree, tmp_path, select='best', ratios=[1.0])
    cfg['train_cfg']['val_interval'] = 2
    entries = RUNNERS.build(load_config(cfg, tmp_path / 'chain.py')).train()
    for entry in entries.values():
        assert 'best_mIoU_iter_' in entry['checkpoint']


def copy_of(finished, tree, tmp_path):
    """A copy of the finished chain: (work dir, a runner of it)."""
    work_dir = tmp_path / 'copy'
    shutil.copytree(finished[0], work_dir)
    cfg = load_config(chain(tree, work_dir), work_dir / 'chain.py')
    return work_dir, MutualTrainingRunner.from_cfg(cfg)


def test_a_stage_and_what_is_made_from_it_are_made_again(finished, tree, tmp_path):
    work_dir, runner = copy_of(finished, tree, tmp_path)
    redone = ['stage_1_b', 'stage_2_a', 'stage_2_b']
    assert runner.redo('round_1.b') == redone
    (away,) = (work_dir / 'replaced').iterdir()
    assert sorted(path.name for path in away.iterdir()) == redone
    assert set(runner.ledger.read()) == set(STAGES) - set(redone)
    entries = runner.train()
    for name in STAGES:
        path = entries[name]['checkpoint']
        assert_same_weights(work_dir / path, finished[0] / path)


def test_what_was_made_from_a_lost_stage_is_not_taken_for_current(finished, tree, tmp_path):
    work_dir, runner = copy_of(finished, tree, tmp_path)
    shutil.rmtree(work_dir / 'stage_1_a')
    with pytest.raises(LedgerMismatchError, match=r"stage_2_a.*checkpoint of \['stage_1_a'\]"):
        runner.train()


def test_checkpoints_that_the_ledger_does_not_know_are_not_resumed(finished, tree, tmp_path):
    _, runner = copy_of(finished, tree, tmp_path)
    runner.ledger.forget('stage_2_a')
    with pytest.raises(RuntimeError, match=r'stage_2_a holds iter_4\.pth, but .*--redo stage_2_a'):
        runner.train()


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'mutual.select': 'best', 'val_dataloader': None}, ValueError, 'val_dataloader'),
        ({'mutual.pseudo_loss': dict(type='mmdmt.DynamicMutualLoss', gama=1)}, TypeError, 'gama'),
        ({'mutual.round.max_iters': 0}, ValueError, 'stage_1_a has `max_iters`=0'),
        ({'load_from': 'no_such.pth'}, FileNotFoundError, r"member 'a' is no_such\.pth"),
        ({'default_hooks.checkpoint.save_last': False}, ValueError, 'save_last'),
        ({'mutual.members.1.labeled_list': 'no_such.txt'}, DatasetError, r'no_such\.txt'),
        ({'mutual.round.source_ratio': [1, 2, 1]}, ValueError, r'two numbers.*\[1, 2, 1\]'),
        ({'mutual.round.source_ratio': [1, 9]}, ValueError, 'leaves source 0 out'),
        ({'mutual.round.source_ratio': ['1', 3]}, ValueError, r"numbers from 0 up.*\['1', 3\]"),
        ({'mutual.round.source_ratio': 3}, ValueError, 'two numbers.*not 3'),
        ({'mutual.round.lr': '0.01'}, ValueError, r"`mutual\.round\.lr`.*'0\.01', a str"),
        (
            {'mutual.round.cfg_options': {'optim_wrapper.optimizer.lr': '0.01'}},
            ValueError,
            r"`optim_wrapper\.optimizer\.lr`.*'0\.01', a str",
        ),
        ({'mutual.metric': 'mIou'}, ValueError, r"`mutual\.metric` is 'mIou'.*is 'mIoU' meant"),
        (
            {'mutual.members.1.cfg_options': {'model.decode_head.num_classes': 3}},
            ValueError,
            r'`model\.decode_head\.num_classes` is 3, but the images have 4 classes \(a, b, c, d\)',
        ),
        (
            {'param_scheduler': [dict(type='LinearLR', begin=6, end=7, by_epoch=False)]},
            ValueError,
            'stage_1_a has 4 iterations.*LinearLR that begins at 6',
        ),
    ],
)
def test_what_a_later_stage_could_not_do_is_refused_at_the_start(
    tree, tmp_path, change, error, message
):
    cfg = Config(mutual(base_config(tree, tmp_path)))
    cfg.merge_from_dict(change)
    cfg = load_config(cfg.to_dict(), tmp_path / 'chain.py')
    with pytest.raises(error, match=message):
        RUNNERS.build(cfg).train()
    assert not list(tmp_path.glob('stage_*'))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('../outside/x', r'unlabeled\.txt: image name .*relative path'),
        ('/absolute', r'unlabeled\.txt: image name .*relative path'),
        ('n' * 230, r'unlabeled\.txt: image name .*too long.* \d+ bytes'),
    ],
)
@pytest.mark.parametrize('check', ['full', 'off'])
def test_names_that_no_label_can_have_are_refused_at_the_start(
    tree, tmp_path, name, message, check
):
    data = tmp_path / 'data'
    shutil.copytree(tree, data)
    listed = str(tmp_path / 'elsewhere') if name == '/absolute' else name
    target = data / 'img' / f'{listed}.png'
    target.parent.mkdir(exist_ok=True)
    shutil.copy(data / 'img' / 'unlabeled_0.png', target)
    (data / 'unlabeled.txt').write_text(f'unlabeled_1\n{listed}\n')
    cfg = mutual(base_config(data, tmp_path / 'run'))
    cfg['default_hooks']['dataset_check'] = dict(mode=check)
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'chain.py'))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert not (tmp_path / 'stage_0_a').exists()


@pytest.mark.parametrize(
    ('moment', 'workers', 'stage'),
    [
        ('stage_0_b/iter_4.pth', 0, 'stage_0_b'),
        ('maps/unlabeled_3.plc', 2, 'stage_1_a'),
        ('stage_1_b/iter_4.pth', 0, None),
    ],
)
def test_a_killed_chain_ends_with_the_same_weights(
    finished, tree, tmp_path, moment, workers, stage
):
    """The whole chain goes on, or the stage that was cut."""
    work_dir, entries = finished
    cfg = add_hook(chain(tree, tmp_path, num_workers=workers))
    config = write_config(cfg, tmp_path / 'chain.py')
    kill_held(make_hook(tree), config, f'writing {moment}')
    only = ['--stage', stage] if stage else []
    train(tree, config, '--resume', *only).finish()
    for name in STAGES[: STAGES.index(stage or STAGES[-1]) + 1]:
        path = entries[name]['checkpoint']
        assert_same_weights(tmp_path / path, work_dir / path)


def test_the_chain_runs_on_two_processes(tree, tmp_path):
    """Ranks share the labeling and the training, and the first one keeps the ledger."""
    settings = dict(
        ratios=[0.5],
        supervised=dict(max_iters=2),
        round=dict(max_iters=2, source_ratio=[1, 3]),
        labeling=dict(pixel_stride=1, num_workers=0, rule='threshold_ratio'),
        select='best',
        ensemble=True,
    )
    cfg = chain(tree, tmp_path, **settings)
    cfg['train_cfg']['val_interval'] = 2
    config = write_config(cfg, tmp_path / 'chain.py')
    for tool in forked_ranks('train.py', config, log=tmp_path / 'rank.log'):
        tool.finish()
    printed = ForkedTool('train.py', config, '--list-stages', log=tmp_path / 'list.log').finish()
    assert printed.count(' done ') == 5 and 'pending' not in printed
    assert printed.count('/best_mIoU_iter_') == 4
    manifest = json.loads((tmp_path / 'stage_1_a/pseudo_labels/manifest.json').read_text())
    assert manifest['num_images'] == 6 and len(manifest['files']) == 6
    assert manifest == label_again(tmp_path / 'stage_1_a', tmp_path / 'again')


def label_again(stage, store_dir):
    """Manifest of the same labeling in this process alone."""
    hook = Config.fromfile(str(stage / 'config.py')).default_hooks.pseudo_labels
    with DefaultScope.overwrite_default_scope('mmseg'):
        labeler = TASK_UTILS.build(dict(hook.labeler, store=str(store_dir)))
        return labeler.run(hook.checkpoint, hook.ratio)


def test_one_stage_can_be_run_from_the_command_line(tree, tmp_path):
    config = write_config(chain(tree, tmp_path), tmp_path / 'chain.py')
    ForkedTool('train.py', config, '--stage', 'round_0.b', log=tmp_path / 'log').finish()
    assert [d.name for d in tmp_path.glob('stage_*_?')] == ['stage_0_b']
