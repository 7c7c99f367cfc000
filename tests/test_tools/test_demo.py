"""The demo runs from end to end, twice, and reports what it did."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from forked_tool import ForkedTool
from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
METHODS = [
    'labeled only',
    'labeled only, member a',
    'labeled only, member b',
    'DMT round 1, member a',
    'DMT round 1, member b',
    'DMT round 2, member a',
    'DMT round 2, member b',
]


def _load_tool():
    spec = importlib.util.spec_from_file_location('mmdmt_demo', ROOT / 'tools' / 'demo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope='module')
def demo():
    return _load_tool()


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
    steps = {row['method']: row['steps'] for row in rows}
    # The baseline has as many steps as either member of DMT at the end.
    assert steps['labeled only'] == steps['DMT round 2, member a']
    assert steps['labeled only'] == steps['DMT round 2, member b']
    assert all(0 <= row['miou'] <= 100 and row['seconds'] > 0 for row in rows)


def test_progress_is_visible(finished):
    _, out = finished
    assert '== Training in' in out and '== Pictures' in out
    for stage in ('Painting scenes', 'stage_0_a', 'stage_2_b'):
        assert f'{stage}: 100%' in out


def test_pictures(finished):
    work_dir, _ = finished
    for name in ('predictions', 'pseudo_labels'):
        with Image.open(work_dir / f'{name}.png') as picture:
            assert picture.width > 900 and len(np.unique(np.asarray(picture))) > 50


def test_exported_models_need_no_mmdmt(finished):
    work_dir, _ = finished
    for name in ('labeled_only', 'dmt'):
        text = (work_dir / 'exported' / name / 'segmentor.py').read_text()
        assert 'mmdmt' not in text


def test_second_run_trains_nothing_and_prints_the_same(finished):
    work_dir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in work_dir.rglob('iter_*.pth')}
    again = _run(work_dir)
    assert {p: p.stat().st_mtime_ns for p in work_dir.rglob('iter_*.pth')} == before
    assert not re.search(r'stage_\w+: +\d+%', again)
    assert (work_dir / 'results.md').read_text() in again + '\n'


def test_other_settings_start_again(finished, demo, capsys):
    work_dir, _ = finished
    args = demo.argparse.Namespace(work_dir=work_dir, seed=0, quick=True, fresh=False)
    cfg = demo.baseline_config(demo.dmt_config(args, work_dir / 'scenes'), args)
    cfg.mutual.supervised.max_iters = 2
    demo.init_default_scope('mmseg')
    demo.train(cfg, fresh=False)
    assert 'starting again' in capsys.readouterr().out
    assert (work_dir / 'labeled_only' / 'stage_0_a' / 'iter_2.pth').exists()


def test_seed_changes_data_and_both_members(demo, tmp_path):
    seeds = []
    for seed in (0, 1, 2):
        args = demo.argparse.Namespace(work_dir=tmp_path, seed=seed, quick=False)
        cfg = demo.dmt_config(args, tmp_path)
        seeds += [member.seed for member in cfg.mutual.members]
    assert len(set(seeds)) == 6


def test_members_and_baseline_train_alike(demo, tmp_path):
    """Nothing but the unlabeled images and the loss sets DMT apart."""
    args = demo.argparse.Namespace(work_dir=tmp_path, seed=0, quick=False)
    dmt = demo.dmt_config(args, tmp_path)
    baseline = demo.baseline_config(dmt, args)
    different = {key for key in dmt if dmt[key] != baseline[key]}
    assert different == {'work_dir', 'mutual'}
    rounds = len(dmt.mutual.ratios) * dmt.mutual.round.max_iters
    assert baseline.mutual.supervised.max_iters == dmt.mutual.supervised.max_iters + rounds
    assert dmt.mutual.members[0].seed == baseline.mutual.members[0].seed


def test_supervised_config_is_the_one_dmt_starts_from():
    folder = ROOT / 'configs'
    first = Config.fromfile(folder / 'supervised' / 'fcn_unet_toy-scenes-96x96.py')
    second = Config.fromfile(folder / 'dmt' / 'dmt_fcn_unet_toy-scenes-96x96.py')
    assert first.model == second.model and first.optim_wrapper == second.optim_wrapper
    assert first.max_iters == second.mutual.supervised.max_iters
    assert list(first.source_ratio) == [1, 0]


def test_table_is_aligned(demo):
    rows = [demo.Row('a', 24, 5, 12.345, 9.6), demo.Row('longer name', 24, 500, 2.0, 100.2)]
    lines = demo.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split('|')[4].strip() == '12.3' and lines[3].split('|')[5].strip() == '100 s'
