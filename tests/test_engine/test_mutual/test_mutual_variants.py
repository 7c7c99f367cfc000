"""Short chains of other members, rules and settings than two alike members with DMT's."""

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_tool import ForkedTool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_models import tiny_segformer, tiny_segmentor
from tiny_project import ROOT, base_config, load_config, make_tree, mutual, write_config

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.engine.mutual import Ledger
from mmdmt.engine.runners import MutualTrainingRunner
from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.pseudo.prediction import predict_probabilities
from mmdmt.registry import DATASETS, RUNNERS

pytestmark = pytest.mark.usefixtures('unformatted_configs')

CAFFE = dict(mean=[104.008, 116.669, 122.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
STRATEGIES = sorted(
    path.name.split('_')[0]
    for path in (ROOT / 'configs/dmt').glob('*_deeplabv3plus_mobilenetv2_msrc21-96x96.py')
    if 'transformer' not in path.name and not path.name.startswith('dmt_')
)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def short(tree, work_dir, **settings):
    """A chain of as few and short stages as can be."""
    settings.setdefault('ratios', [0.5])
    settings.setdefault('supervised', dict(max_iters=2))
    settings.setdefault('round', dict(max_iters=2, source_ratio=[1, 3]))
    return mutual(base_config(tree, work_dir, max_iters=2), **settings)


def run(cfg, work_dir):
    torch.set_num_threads(1)
    runner = RUNNERS.build(load_config(cfg, work_dir / 'chain.py'))
    return runner, runner.train()


def manifest_of(work_dir, stage):
    return json.loads((work_dir / stage / 'pseudo_labels' / 'manifest.json').read_text())


# ------------------------------------------------------------------------------------- members


@pytest.fixture(scope='module')
def mixed(unformatted_configs, tree, tmp_path_factory):
    """A CNN on RGB and a transformer on mean-subtracted BGR in windows: (work dir, runner)."""
    work_dir = tmp_path_factory.mktemp('mixed')
    other = tiny_segformer()
    other['data_preprocessor'] = dict(type='SegDataPreProcessor', size=(24, 24), **CAFFE)
    other['test_cfg'] = dict(mode='slide', crop_size=(24, 24), stride=(16, 16))
    members = [
        dict(name='cnn', seed=1),
        dict(name='former', seed=2, cfg_options=dict(model=dict(_delete_=True, **other))),
    ]
    cfg = short(tree, work_dir, members=members, ensemble=True)
    return work_dir, run(cfg, work_dir)[0]


@pytest.mark.parametrize(('learner', 'teacher'), [('cnn', 'former'), ('former', 'cnn')])
def test_a_member_is_labeled_by_the_others_own_network_and_preprocessing(mixed, learner, teacher):
    work_dir, runner = mixed
    config = Config.fromfile(str(work_dir / f'stage_1_{learner}' / 'config.py'))
    labeler = config.default_hooks.pseudo_labels.labeler
    with DefaultScope.overwrite_default_scope('mmseg'):
        trained = Config.fromfile(str(work_dir / f'stage_0_{teacher}' / 'config.py')).model
        model = build_segmentor(dict(trained, data_preprocessor=labeler.model.data_preprocessor))
        dataset = DATASETS.build(labeler.dataset)
    assert labeler.model.data_preprocessor['mean'] == trained.data_preprocessor['mean']
    assert (labeler.model.backbone['type'] == 'MixVisionTransformer') == (teacher == 'former')
    content = load_checkpoint_file(runner.ledger.checkpoint(f'stage_0_{teacher}'))
    model.load_state_dict(content['state_dict'])
    sample = dataset[0]
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    with torch.no_grad():
        (prob,) = predict_probabilities(model.eval(), batch)
    store = PseudoLabelStore(work_dir / f'stage_1_{learner}' / 'pseudo_labels')
    label, confidence = store.get(dataset.get_data_info(0)['name'])
    assert np.array_equal(label, prob.argmax(dim=0))
    np.testing.assert_allclose(confidence, prob.amax(dim=0), atol=2e-3)


def test_the_ensemble_of_different_members_is_validated_and_can_be_tested(mixed, tree):
    work_dir, runner = mixed
    entry = runner.ledger.entry('ensemble')
    assert entry['state'] == 'done' and 0 <= entry['metrics']['mIoU'] <= 100
    cfg = Config.fromfile(str(work_dir / 'ensemble' / 'config.py'))
    cfg.update(load_from=str(work_dir / entry['checkpoint']), work_dir=str(work_dir / 'test'))
    assert RUNNERS.build(cfg).test()['mIoU'] == pytest.approx(entry['metrics']['mIoU'])
    assert 'ensemble' in runner.describe().splitlines()[-1]
    assert runner.train()['ensemble'] == entry, 'it was validated again'


def test_weights_of_different_networks_are_not_averaged(mixed):
    _, runner = mixed
    cfg = copy.deepcopy(runner.cfg)
    cfg.mutual.ensemble = dict(weights=True)
    with pytest.raises(ValueError, match=r'ensemble\.weights'):
        MutualTrainingRunner.from_cfg(cfg).train()


def test_three_members_label_in_a_ring(tree, tmp_path):
    members = [dict(name=name, seed=index) for index, name in enumerate('abc')]
    cfg = short(tree, tmp_path, members=members, ensemble=dict(predictions=True, weights=True))
    runner, entries = run(cfg, tmp_path)
    for learner, teacher in ('ab', 'bc', 'ca'):
        config = Config.fromfile(str(tmp_path / f'stage_1_{learner}' / 'config.py'))
        used = config.default_hooks.pseudo_labels.checkpoint
        assert used == runner.ledger.checkpoint(f'stage_0_{teacher}')
    members = [load_checkpoint_file(runner.ledger.checkpoint(f'stage_1_{m}')) for m in 'abc']
    merged = load_checkpoint_file(tmp_path / entries['ensemble']['checkpoint'])['state_dict']
    mean = load_checkpoint_file(tmp_path / entries['averaged_weights']['checkpoint'])['state_dict']
    for key, value in mean.items():
        single = [member['state_dict'][key] for member in members]
        assert all(torch.equal(merged[f'members.{i}.{key}'], s) for i, s in enumerate(single))
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack(single).mean(dim=0))


def test_members_of_different_weights_and_subsets(tree, tmp_path):
    """As published for few labels: one set of weights each, one subset each in round 0."""
    names = (tree / 'labeled.txt').read_text().split()
    for side, part in (('left', names[:3]), ('right', names[1:])):
        (tmp_path / f'{side}.txt').write_text('\n'.join(part) + '\n')
    weights = {}
    for seed, name in enumerate('ab'):
        torch.manual_seed(seed)
        weights[name] = str(tmp_path / f'{name}.pth')
        torch.save(dict(state_dict=build_segmentor(tiny_segmentor()).state_dict()), weights[name])
    members = [
        dict(name=side[0], load_from=weights[name], labeled_list=str(tmp_path / f'{side}.txt'))
        for side, name in (('left', 'a'), ('right', 'b'))
    ]
    cfg = short(tree, tmp_path / 'second', members=members)
    runner, _ = run(cfg, make(tmp_path / 'second'))
    for member, source in (('l', 'a'), ('r', 'b')):
        config = Config.fromfile(str(tmp_path / f'second/stage_0_{member}/config.py'))
        assert config.load_from == weights[source]
        later = Config.fromfile(str(tmp_path / f'second/stage_1_{member}/config.py'))
        lists = [c.train_dataloader.dataset.datasets[0].ann_file for c in (config, later)]
        assert lists[0].endswith(('left.txt', 'right.txt')) and lists[1] == 'labeled.txt'
        assert later.load_from == runner.ledger.checkpoint(f'stage_0_{member}')


def make(path):
    path.mkdir()
    return path


# ---------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_the_settings_of_every_shipped_strategy_run(tree, tmp_path, strategy):
    """With one member and one round, of whatever number the strategy has."""
    name = f'{strategy}_deeplabv3plus_mobilenetv2_msrc21-96x96.py'
    shipped = Config.fromfile(str(ROOT / 'configs' / 'dmt' / name)).mutual.to_dict()
    shipped.update({key: shipped[key][:1] for key in ('members', 'ratios')})
    shipped['supervised'] = dict(max_iters=2)
    shipped['round'].update(max_iters=2, source_ratio=[1, 3])
    shipped['labeling'] = dict(shipped.get('labeling', {}), num_workers=0, pixel_stride=1)
    _, entries = run(short(tree, tmp_path, **shipped), tmp_path)
    assert entries['stage_1_a']['state'] == 'done'
    manifest = manifest_of(tmp_path, 'stage_1_a')
    if strategy == 'curriculum':
        assert len(set(manifest['thresholds'])) == 1
        assert Config.fromfile(str(tmp_path / 'stage_1_a' / 'config.py')).load_from is None


# ------------------------------------------------------------------------- what goes on, reports


def test_the_best_so_far_goes_on_from_an_earlier_round(tree, tmp_path, monkeypatch):
    """Round 1 is made worse than round 0: the member's next round starts from round 0."""
    cfg = short(tree, tmp_path, members=[dict(name='a')], select='best_so_far', ratios=[0.5, 1.0])
    scores = iter([40.0, 30.0, 50.0])
    original = MutualTrainingRunner._product

    def product(self, stage, runner):
        runner.message_hub.update_info('best_score', next(scores))
        return original(self, stage, runner)

    monkeypatch.setattr(MutualTrainingRunner, '_product', product)
    runner, entries = run(cfg, tmp_path)
    assert entries['stage_1_a']['selected_from'] == 'stage_0_a'
    assert entries['stage_1_a']['checkpoint'] == entries['stage_0_a']['checkpoint']
    last = Config.fromfile(str(tmp_path / 'stage_2_a' / 'config.py'))
    assert last.load_from == str(tmp_path / entries['stage_0_a']['checkpoint'])
    assert (
        entries['stage_2_a']['metrics']['mIoU'] == 50
        and 'selected_from' not in (entries['stage_2_a'])
    )
    rows = runner.describe().splitlines()
    assert '+10.00' in rows[3] and 'best_so_far' in rows[3] and 'stage_0_a' in rows[2]


def test_each_round_may_have_its_own_rule(tree, tmp_path):
    cfg = short(tree, tmp_path, members=[dict(name='a')], select=['best', 'last'])
    _, entries = run(cfg, tmp_path)
    assert 'best_mIoU' in entries['stage_0_a']['checkpoint']
    assert entries['stage_1_a']['checkpoint'].endswith('iter_2.pth')
    assert [entries[f'stage_{r}_a']['select'] for r in (0, 1)] == ['best', 'last']


def test_log_and_scalars_describe_labels_and_rounds(mixed):
    work_dir, _ = mixed
    stage = work_dir / 'stage_1_cnn'
    scalars = [json.loads(x) for path in stage.rglob('scalars.json') for x in path.open()]
    labels = next(row for row in scalars if 'pseudo_labels/kept_share' in row)
    assert {f'pseudo_labels/{kind}/a' for kind in ('share', 'kept', 'confidence')} <= set(labels)
    steps = [row for row in scalars if 'decode.loss_pseudo' in row]
    health = {'pseudo_keep_ratio', 'pseudo_disagreement', 'pseudo_student_wins', 'mean_weight'}
    assert health <= set(steps[0])
    # The total is the loss alone: no statistic was summed into it.
    assert steps[0]['loss'] == pytest.approx(steps[0]['decode.loss_pseudo'])
    text = '\n'.join(path.read_text() for path in stage.rglob('*.log'))
    assert 'kept %' in text and 'confidence' in text


# ----------------------------------------------------------------------- half precision, ranks


def test_a_stage_trains_and_labels_in_half_precision(tree, tmp_path):
    cfg = short(
        tree,
        tmp_path,
        members=[dict(name='a')],
        labeling=dict(amp=True, tta=dict(flip=True), num_workers=0),
    )
    cfg['optim_wrapper']['type'] = 'mmdmt.CPUAmpOptimWrapper'
    _, entries = run(cfg, tmp_path)
    state = load_checkpoint_file(tmp_path / entries['stage_1_a']['checkpoint'])['state_dict']
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    assert manifest_of(tmp_path, 'stage_1_a')['amp'] is True


def test_two_machines_share_a_round(tree, tmp_path):
    """Two processes at once; each finds the other's result, and the next round can begin."""
    config = write_config(short(tree, tmp_path), tmp_path / 'chain.py')
    tools = [
        ForkedTool('train.py', config, '--stage', f'round_0.{m}', log=tmp_path / f'{m}.log')
        for m in 'ab'
    ]
    logs = [tool.finish() for tool in tools]
    finished = sum(log.rsplit('Stages after round 0', 1)[1].count(' done ') for log in logs)
    assert finished >= 3, 'the second to finish does not show the first'
    again = ForkedTool('train.py', config, '--stage', 'round_0.a', log=tmp_path / 'again.log')
    assert 'finished before, skipped' in again.finish()
    ForkedTool('train.py', config, '--stage', 'round_1.a', log=tmp_path / 'next.log').finish()
    with Ledger(str(tmp_path)).hold('stage_1_b'):  # by this process
        busy = ForkedTool('train.py', config, '--stage', 'round_1.b', log=tmp_path / 'busy.log')
        assert f'worked on by process {os.getpid()} on' in busy.finish(check=False)
    listed = ForkedTool('train.py', config, '--list-stages', log=tmp_path / 'list.log').finish()
    rows = [line.split() for line in listed.splitlines() if line.startswith('stage_')]
    assert [row[0] for row in rows if 'done' in row] == ['stage_0_a', 'stage_0_b', 'stage_1_a']
    assert rows[2][-1] == 'stage_1_a/iter_2.pth' and rows[3][-1] == 'pending'


def test_a_checkpoint_to_resume_is_refused_and_a_stage_is_made_again(tree, tmp_path):
    config = write_config(short(tree, tmp_path), tmp_path / 'chain.py')
    wrong = ForkedTool('train.py', config, '--resume', 'iter_2.pth', log=tmp_path / 'wrong.log')
    assert 'leave the checkpoint out, or use --redo STAGE' in wrong.finish(check=False)
    stage = ('--stage', 'round_0.b')
    ForkedTool('train.py', config, *stage, log=tmp_path / 'first.log').finish()
    again = ForkedTool('train.py', config, *stage, '--redo', 'round_0.b', log=tmp_path / 'redo.log')
    assert 'stage_0_b: done' in again.finish()
    assert len(list(tmp_path.glob('replaced/*/stage_0_b/iter_2.pth'))) == 1


def test_a_chain_cut_between_stages_or_before_the_ensemble_goes_on(tree, tmp_path, monkeypatch):
    whole = make(tmp_path / 'whole')
    settings = dict(ensemble=True, ratios=[])
    _, expected = run(short(tree, whole, **settings), whole)
    cut = make(tmp_path / 'cut')
    for name, stop in (('_run', 'stage_0_b'), ('_run_ensemble', 'predictions')):
        original = getattr(MutualTrainingRunner, name)

        def crash(self, what, *args, stop=stop, original=original):
            if stop in (what, getattr(what, 'name', None)):
                raise KeyboardInterrupt
            return original(self, what, *args)

        monkeypatch.setattr(MutualTrainingRunner, name, crash)
        with pytest.raises(KeyboardInterrupt):
            run(short(tree, cut, **settings), cut)
        monkeypatch.setattr(MutualTrainingRunner, name, original)
    _, entries = run(short(tree, cut, **settings), cut)
    assert set(entries) == set(expected)
    for name, entry in expected.items():
        assert entries[name]['metrics'] == entry['metrics']
        paths = [Path(root) / entry['checkpoint'] for root in (whole, cut)]
        first, second = (load_checkpoint_file(path)['state_dict'] for path in paths)
        assert all(torch.equal(first[key], second[key]) for key in first)
    shutil.rmtree(cut / 'ensemble')
    _, again = run(short(tree, cut, **settings), cut)
    assert again['ensemble']['metrics'] == expected['ensemble']['metrics']
    assert (cut / 'ensemble' / 'config.py').exists()
