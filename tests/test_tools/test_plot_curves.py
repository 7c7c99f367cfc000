import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'plot_curves.py'


def load_tool():
    spec = importlib.util.spec_from_file_location('plot_curves', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


curves = load_tool()


def write_log(work_dir, stamp, lines):
    folder = work_dir / stamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(line) for line in lines) + '\n')


@pytest.fixture
def run(tmp_path):
    """A run that was killed after iteration 30 and resumed from 20."""
    work_dir = tmp_path / 'run'
    first = [dict(step=step, loss=10.0 / step, distance=step / 100) for step in (10, 20, 30)]
    write_log(work_dir, '20260101_000000', [*first, {'mIoU': 5.0, 'step': 20}])
    again = [dict(step=step, loss=1.0, distance=0.5) for step in (30, 40)]
    write_log(work_dir, '20260101_000001', again)
    return work_dir


def use(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    curves.main()
    return capsys.readouterr().out


def rows(printed):
    """Cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in printed.splitlines()]


def test_logs_of_a_resumed_run_are_put_together(run, monkeypatch, capsys):
    printed = use(monkeypatch, capsys, f'mine={run}', '--keys', 'loss', 'distance')
    titles, _, *values = rows(printed)
    assert titles == ['iteration', 'mine: loss', 'mine: distance']
    assert values == [
        ['10', '1', '0.1'],
        ['20', '0.5', '0.2'],
        ['30', '1', '0.5'],
        ['40', '1', '0.5'],
    ]


def test_rows_are_means_over_windows(run, monkeypatch, capsys):
    printed = use(monkeypatch, capsys, run, '--keys', 'distance', '--every', 20)
    assert rows(printed)[2:] == [['20', '0.15'], ['40', '0.5']]


def test_values_logged_now_and_then_leave_cells_empty(run, monkeypatch, capsys):
    printed = use(monkeypatch, capsys, run, '--keys', 'loss', 'mIoU')
    assert ['20', '0.5', '5'] in rows(printed) and ['40', '1', ''] in rows(printed)


@pytest.mark.parametrize('suffix', ['svg', 'png'])
def test_a_picture_of_two_runs(run, monkeypatch, capsys, tmp_path, suffix):
    out = tmp_path / f'curves.{suffix}'
    args = [f'a={run}', f'b={run}', '--keys', 'loss', 'distance', '--out', out]
    use(monkeypatch, capsys, *args)
    first = out.read_bytes()
    assert first[:4] in (b'\x89PNG', b'<?xm')
    if suffix == 'svg':
        assert b'distance' in first or b'<path' in first


def test_a_folder_without_logs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='name the work dir of a run'):
        curves.find_logs(tmp_path)


def test_a_value_that_was_not_logged_is_named(run):
    with pytest.raises(KeyError, match='was not logged in'):
        curves.read_curves(curves.find_logs(run), ['los'])
