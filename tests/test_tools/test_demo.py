"""The demo runs from end to end, twice, and reports what it did."""

import copy
import fcntl
import importlib.util
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from forked_tool import PATIENCE, ForkedTool
from mmengine.config import Config
from PIL import Image

from mmdmt.config import resolve_config
from mmdmt.engine.runners import MutualTrainingRunner

ROOT = Path(__file__).resolve().parents[2]
METHODS = [
    'labeled only',
    'labeled only (DMT round 0, member a)',
    'labeled only (DMT round 0, member b)',
    'DMT round 1, member a',
    'DMT round 1, member b',
    'DMT round 2, member a',
    'DMT round 2, member b',
    'Dual Teacher',
]


def _load_tool():
    spec = importlib.util.spec_from_file_location('mmdmt_demo', ROOT / 'tools' / 'demo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope='module')
def demo():
    return _load_tool()


def _configs(demo, work_dir, seed=0, quick=False):
    args = demo.argparse.Namespace(work_dir=work_dir, seed=seed, quick=quick)
    return demo.make_configs(args, work_dir / 'scenes')


def _run(work_dir, *args):
    log = work_dir.parent / f'{work_dir.name}_{len(list(work_dir.parent.glob("*.log")))}.log'
    return ForkedTool('demo.py', '--quick', '--work-dir', work_dir, *args, log=log).finish()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A work dir in which the demo has run, and what it printed."""
    work_dir = tmp_path_factory.mktemp('demo') / 'out'
    return work_dir, _run(work_dir)


def test_table_on_the_screen_and_in_files(finished):
    work_dir, out = finished
    table = (work_dir / 'results.md').read_text().strip()
    assert table in out
    rows = json.loads((work_dir / 'results.json').read_text())['rows']
    assert [row['method'] for row in rows] == METHODS
    assert len({row['labels'] for row in rows}) == 1
    assert all(0 <= row['miou'] <= 100 for row in rows)
    baseline = rows[0]
    for row in rows[1:]:
        if row['steps'] == baseline['steps']:
            assert row['difference'] == pytest.approx(row['miou'] - baseline['miou'])
        else:
            assert row['difference'] is None
    compared = [row['method'] for row in rows if row['difference'] is not None]
    assert compared == ['DMT round 2, member a', 'DMT round 2, member b', 'Dual Teacher']


def test_progress_is_visible(finished):
    _, out = finished
    assert '== Training in' in out and '== Pictures' in out
    for run in (
        'Painting scenes',
        'DMT stage_0_a',
        'DMT stage_2_b',
        'Dual Teacher',
        'labeled only',
    ):
        assert f'{run}: 100%' in out


def test_pictures(finished):
    work_dir, _ = finished
    for name in ('predictions', 'pseudo_labels'):
        with Image.open(work_dir / f'{name}.png') as picture:
            assert picture.width > 900 and len(np.unique(np.asarray(picture))) > 50


def test_exported_models_need_no_mmdmt(finished):
    work_dir, _ = finished
    for name in ('labeled_only', 'dmt', 'online'):
        text = (work_dir / 'exported' / name / 'segmentor.py').read_text()
        assert 'mmdmt' not in text


def test_second_run_trains_nothing_and_prints_the_same(finished):
    work_dir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in work_dir.rglob('iter_*.pth')}
    tested = {p: p.stat().st_mtime_ns for p in work_dir.glob('scores/*.json')}
    again = _run(work_dir, '--jobs', '1')
    assert {p: p.stat().st_mtime_ns for p in work_dir.rglob('iter_*.pth')} == before
    assert {p: p.stat().st_mtime_ns for p in work_dir.glob('scores/*.json')} == tested != {}
    assert not re.search(r'stage_\w+: +\d+%', again)
    assert (work_dir / 'results.md').read_text() in again + '\n'


def test_other_settings_start_again(finished, demo, capsys):
    work_dir, _ = finished
    configs = _configs(demo, work_dir, quick=True)
    for cfg in configs.values():
        demo.keep_or_clear(cfg, fresh=False)
    assert 'starting again' not in capsys.readouterr().out
    kept = {name: Path(cfg.work_dir, 'settings.json').read_bytes() for name, cfg in configs.items()}
    folder = work_dir.parent / 'copied'
    folder.mkdir()
    (folder / 'settings.json').write_bytes(kept['online'])
    (folder / 'iter_7.pth').touch()
    configs['online'].merge_from_dict(dict(work_dir=str(folder), max_iters=1))
    demo.keep_or_clear(configs['online'], fresh=False)
    assert 'starting again' in capsys.readouterr().out
    assert not (folder / 'iter_7.pth').exists()


def test_only_what_is_missing_is_trained_again(finished, demo):
    """A run that was interrupted goes on: with the stages and runs that are not finished."""
    work_dir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in work_dir.rglob('iter_*.pth')}
    results = (work_dir / 'results.md').read_text()
    lost = [p for p in before if 'online' in p.parts or 'stage_2_b' in p.parts]
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    tested = {p: p.stat().st_mtime_ns for p in work_dir.glob('scores/*.json')}
    _run(work_dir)
    again = {p.stem for p, time in tested.items() if p.stat().st_mtime_ns != time}
    assert again == {'online', 'stage_2_b'}
    after = {p: p.stat().st_mtime_ns for p in work_dir.rglob('iter_*.pth')}
    assert {p for p in before if after[p] != before[p]} == set(lost)
    assert (work_dir / 'results.md').read_text() == results


def test_failure_of_one_run_ends_all_and_is_named(tmp_path):
    broken = tmp_path / 'out' / 'dmt' / 'stage_0_b'
    broken.parent.mkdir(parents=True)
    broken.write_text('a file where a folder has to be')
    settings = tmp_path / 'out' / 'dmt' / 'settings.json'
    demo = _load_tool()
    demo.generate(tmp_path / 'out' / 'scenes', seed=0, progress=False, **demo.QUICK_SCENES)
    cfg = _configs(demo, tmp_path / 'out', quick=True)['dmt']
    settings.write_text(demo.settings_of(cfg))
    log = tmp_path / 'demo.log'
    args = ('--quick', '--work-dir', tmp_path / 'out')
    tool = ForkedTool('demo.py', *args, log=log, own_server=True)
    out = tool.finish(check=False)
    assert tool.process.exitcode == 1
    assert 'stage_0_b failed (exit code 1), see above.' in out
    assert 'stage_0_b' in out.split('Traceback')[1]
    assert not (tmp_path / 'out' / 'results.md').exists()
    assert not (tmp_path / 'out' / 'labeled_only' / 'iter_7.pth').exists()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_runs_end_with_the_demo(tmp_path, number):
    log = tmp_path / 'demo.log'
    tool = ForkedTool('demo.py', '--quick', '--work-dir', tmp_path / 'out', log=log)
    end = time.monotonic() + PATIENCE
    while 'DMT stage_0_a' not in log.read_text(errors='replace') and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(tool.process.pid, number)
    tool.finish(check=False)
    assert tool.process.exitcode != 0
    stages = tmp_path / 'out' / 'dmt'
    lock = stages / '.stage_0_a.lock'
    with open(lock) as file:  # nobody holds it any more
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_runs_wait_for_what_they_need_and_no_more_run_than_asked_for(demo, tmp_path, monkeypatch):
    events = []

    class FakeContext:
        def RLock(self):
            return None

        def Process(self, target, args, daemon):
            return FakeProcess(args[0].name, args[2])

    class FakeProcess:
        exitcode = 0
        open = []

        def __init__(self, name, lane):
            self.name, self.lane, self.sentinel = name, lane, name

        def start(self):
            self.open.append(self.name)
            events.append((self.name, self.lane, len(self.open)))

        def join(self):
            self.open.remove(self.name)

    monkeypatch.setattr(demo, 'wait', lambda sentinels: sentinels[:1])
    runs = demo.plan(_configs(demo, tmp_path))
    for jobs in (1, 2, 3):
        events.clear()
        demo.train_all(runs, jobs, tmp_path / 'scores', FakeContext())
        order = [name for name, _, _ in events]
        assert sorted(order) == sorted(run.name for run in runs)
        assert all(order.index(n) < order.index(run.name) for run in runs for n in run.needs)
        assert max(together for _, _, together in events) == jobs
        assert {lane for _, lane, _ in events} == set(range(jobs))


def test_two_runs_at_a_time_end_at_about_one_time(demo, tmp_path, monkeypatch):
    """With the times of two idle cores: a core that waits for the other would take minutes."""
    seconds = dict(online=200, labeled_only=120, stage_0=52, stage_1=48, stage_2=46)
    clock, ends = [0], {}

    class FakeProcess:
        exitcode = 0

        def __init__(self, target, args, daemon):
            self.sentinel = args[0].name

        def start(self):
            kind = self.sentinel if self.sentinel in seconds else self.sentinel[: -len('_a')]
            ends[self.sentinel] = clock[0] + seconds[kind]

        def join(self):
            pass

    class FakeContext:
        RLock = staticmethod(lambda: None)
        Process = FakeProcess

    def wait(sentinels):
        first = min(sentinels, key=ends.get)
        clock[0] = ends[first]
        return [first]

    monkeypatch.setattr(demo, 'wait', wait)
    demo.train_all(demo.plan(_configs(demo, tmp_path)), 2, tmp_path / 'scores', FakeContext())
    assert len(ends) == 8
    assert clock[0] <= 1.05 * (200 + 120 + 2 * (52 + 48 + 46)) / 2


def test_seed_changes_data_and_both_members(demo, tmp_path):
    seeds = []
    for seed in (0, 1, 2):
        cfg = _configs(demo, tmp_path, seed)['dmt']
        seeds += [member.seed for member in cfg.mutual.members]
    assert len(set(seeds)) == 6


def test_every_student_takes_as_many_steps_of_as_many_images(demo, tmp_path):
    """Of the configs that are trained; nothing but the method sets them apart."""
    configs = _configs(demo, tmp_path)
    runner = MutualTrainingRunner.from_cfg(configs['dmt'])
    stages = [runner.builder.build(stage, str(tmp_path)) for stage in runner.plan.stages]
    steps = {}
    for stage, cfg in zip(runner.plan.stages, stages):
        steps[stage.member] = steps.get(stage.member, 0) + cfg.train_cfg.max_iters
    plain = [resolve_config(copy.deepcopy(configs[name])) for name in ('labeled_only', 'online')]
    baseline, online = plain
    assert {*steps.values(), *(cfg.train_cfg.max_iters for cfg in plain)} == {steps['a']}
    assert {cfg.train_dataloader.batch_size for cfg in (*plain, *stages)} == {8}
    assert len(baseline.train_dataloader.dataset.datasets) == 1
    assert online.model.segmentor == baseline.model
    assert stages[0].model.backbone == baseline.model.backbone
    for key in ('optim_wrapper', 'param_scheduler', 'randomness', 'val_dataloader'):
        assert online[key] == baseline[key], key
    assert stages[0].optim_wrapper == baseline.optim_wrapper
    assert stages[0].randomness.seed == baseline.randomness.seed
    labeled = [cfg.train_dataloader.dataset.datasets[0] for cfg in (*plain, *stages)]
    assert all(source == labeled[0] for source in labeled)
    planned = {run.name: run.steps for run in demo.plan(configs)}
    assert {planned[name] for name in ('labeled_only', 'online', 'stage_2_a')} == {steps['a']}


def test_supervised_config_is_the_one_the_others_start_from():
    folder = ROOT / 'configs'
    first = Config.fromfile(folder / 'supervised' / 'fcn_unet_toy-scenes-96x96.py')
    second = Config.fromfile(folder / 'dmt' / 'dmt_fcn_unet_toy-scenes-96x96.py')
    assert first.model == second.model and first.optim_wrapper == second.optim_wrapper
    assert list(first.source_ratio) == [1, 0]


def test_table_is_aligned(demo):
    rows = [demo.Row('a', 24, 5, 12.345, None), demo.Row('longer name', 24, 500, 2.0, -1.25)]
    lines = demo.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split('|')[4].strip() == '12.3' and lines[3].split('|')[5].strip() == '-1.2'


def test_jobs_have_to_be_some(demo, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['demo.py', '--jobs', '0'])
    with pytest.raises(SystemExit):
        demo.parse_args()
    assert '--jobs 0: choose 1 or more' in capsys.readouterr().err
