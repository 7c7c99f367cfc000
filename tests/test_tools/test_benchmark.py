"""A tiny plan is run, killed, gone on with, and its tables are computed again."""

import copy
import csv
import importlib.util
import json
import re
import shutil
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pytest
from forked_tool import ForkedTool
from interruptions import add_hook, make_hook
from tiny_project import base_config, labeled_only, make_tree, mean_teacher, mutual, write_config

from mmdmt.engine.benchmark.job import best_checkpoint
from mmdmt.engine.benchmark.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
SEEDS = [0, 1]
METHODS = ['labeled_only', 'mean_teacher', 'dmt', 'broken']


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """Folder with data, configs of three methods and a plan of four, of which one fails."""
    folder = make_hook(tmp_path_factory.mktemp('benchmark'))
    tree = make_tree(folder / 'data', labeled=4, val=4)
    configs = {
        'labeled_only': labeled_only(base_config(tree, '')),
        'mean_teacher': mean_teacher(base_config(tree, '')),
        'dmt': mutual(base_config(tree, ''), ratios=[1.0]),
    }
    for name, cfg in configs.items():
        cfg.pop('work_dir')
        write_config(add_hook(copy.deepcopy(cfg)), folder / f'{name}.py')
    methods = {name: dict(config=f'{name}.py') for name in configs}
    wrong = {'optim_wrapper.optimizer.lr': -1}
    methods['broken'] = dict(config='labeled_only.py', options=wrong)
    plan = dict(
        methods=methods, labels=['4'], seeds=SEEDS, budget=dict(student_steps=STEPS), validations=3
    )
    plan['quick'] = dict(methods=['labeled_only', 'dmt'], seeds=[0])
    text = '\n'.join(f'{key} = {value!r}' for key, value in plan.items())
    (folder / 'plan.py').write_text(text + '\n')
    return folder


def start(folder, out, *args, log=None, **environment):
    name = Path(out).name
    count = len(list(folder.glob(f'{name}_*.log')))  # each its own, so that it holds nothing else
    log = log or folder / f'{name}_{count}.log'
    return ForkedTool(
        'benchmark.py',
        folder / 'plan.py',
        '--out',
        out,
        *args,
        log=log,
        PYTHONPATH=str(folder),
        **environment,
    )


@pytest.fixture(scope='module')
def finished(project):
    """A folder in which the plan has been run with two processes, and what was printed."""
    out = project / 'finished'
    tool = start(project, out, '--jobs', '2')
    text = tool.finish(check=False)
    return out, text, tool.process.exitcode


def results_of(out, costs=False):
    """The results, without what differs between machines and folders."""
    results = json.loads((out / 'results.json').read_text())
    for each in [*results['runs'], *results['rows']]:
        each['cost'] = each['cost'] if costs else None
        each.pop('resumed', None)
    return results


def rows_of(results, method, kind='last'):
    (row,) = [r for r in results['rows'] if (r['method'], r['checkpoint']) == (method, kind)]
    return row


def record(out, method, seed, kind='last'):
    """The record by which a run is judged."""
    folder = out / '4_fold_0' / method / f'seed_{seed}' / 'evaluation'
    found = [json.loads(path.read_text()) for path in folder.glob('*.json')]
    (only,) = [r for r in found if r['selected_by'].startswith(kind) and r['row'] and r['default']]
    return only


def test_a_failing_run_is_named_and_the_others_are_finished(finished):
    out, text, code = finished
    assert code != 0
    assert '2 runs failed:' in text and '4_fold_0/broken/seed_1 (exit code 1)' in text
    assert 'lr` must be in [0, inf], got -1' in text.split('2 runs failed:')[1]  # of its log
    assert '6 of 8 runs are finished' in text
    states = {run['name']: run['state'] for run in results_of(out)['runs']}
    assert {state for name, state in states.items() if 'broken' in name} == {'failed'}
    assert {state for name, state in states.items() if 'broken' not in name} == {'done'}


@pytest.mark.parametrize('kind', ['last', 'best'])
def test_the_table_is_what_the_records_say(finished, kind):
    out, _, _ = finished
    results = results_of(out)

    def miou(images):
        intersect, pred, label = (
            np.sum([image[key] for image in images], 0) for key in ('intersect', 'pred', 'label')
        )
        union = pred + label - intersect
        return 100 * np.mean(intersect[union > 0] / union[union > 0])

    for method in METHODS[:3]:
        records = [record(out, method, seed, kind) for seed in SEEDS]
        values = [miou(r['images']) for r in records]
        row = rows_of(results, method, kind)
        assert row['values'] == pytest.approx(values)
        assert row['mean'] == pytest.approx(np.mean(values))
        assert row['std'] == pytest.approx(np.std(values, ddof=1))
        base = [miou(record(out, 'labeled_only', seed, kind)['images']) for seed in SEEDS]
        if method == 'labeled_only':
            assert row['difference'] is None
        else:
            found = row['difference']
            assert found['values'] == pytest.approx(np.subtract(values, base))
            assert found['low'] <= found['mean'] <= found['high']
        iou = [r['per_class']['IoU'][1] for r in records]
        assert row['per_class'][1]['mean'] == pytest.approx(np.mean(iou))
    assert [r for r in results['rows'] if r['method'] == 'broken'] == []


def test_every_run_is_an_ordinary_work_dir_of_the_planned_length(finished):
    out, _, _ = finished
    for seed in SEEDS:
        folder = out / '4_fold_0'
        for method in ('labeled_only', 'mean_teacher'):
            assert (folder / method / f'seed_{seed}' / f'iter_{STEPS}.pth').is_file()
        stages = json.loads((folder / 'dmt' / f'seed_{seed}' / 'stages.json').read_text())['stages']
        lengths = [int(Path(stage['checkpoint']).stem[5:]) for stage in stages.values()]
        assert lengths == [2, 2, 1, 1]  # two members of two stages: 8 and 4 steps of the config
    # Each draws batches of its own.
    first, second = (record(out, 'labeled_only', seed)['confusion'] for seed in SEEDS)
    assert first != second


def test_networks_costs_and_tables(finished):
    out, text, _ = finished
    results = results_of(out, costs=True)
    runs = {run['name']: run for run in results['runs']}
    teacher = runs['4_fold_0/mean_teacher/seed_0']
    last = [n for n in teacher['networks'] if n['selected_by'] == 'last']
    assert {n['network']: n['row'] for n in last} == {'teacher': True, 'student': False}
    chain = [n for n in runs['4_fold_0/dmt/seed_0']['networks'] if n['selected_by'] == 'last']
    assert {n['network']: n['row'] for n in chain} == {'a': True, 'b': False}
    for run in results['runs']:
        if run['state'] == 'done':
            assert run['cost']['wall_s'] > 0 and run['cost']['cpu_s'] > 0
            assert run['cost']['memory_gib'] > 0.1
            best = [n for n in run['networks'] if n['selected_by'] == 'best mIoU on val']
            assert best and all(0 <= n['val_score'] <= 100 for n in best)
    # A batch of 4: Mean Teacher has 4 images with gradient and 2 without, members two times 4.
    passes = {run['method']: run['passes'] for run in results['runs']}
    assert passes['labeled_only'] == STEPS * 12 and passes['mean_teacher'] == STEPS * 14
    assert passes['dmt'] == STEPS * 24
    table = (out / 'results.md').read_text()
    assert table in text and '| mean_teacher | teacher' in table and '### Per class' in table
    assert 'selected on the test images' in table  # the tiny project has no others
    with open(out / 'results.csv') as file:
        lines = list(csv.DictReader(file))
    found = {(line['method'], line['checkpoint']): float(line['mean']) for line in lines}
    assert found['dmt', 'last'] == pytest.approx(rows_of(results, 'dmt')['mean'])


def test_killed_in_the_middle_and_started_again_it_ends_alike(project, finished):
    out, held = project / 'killed', project / 'held'
    tool = start(project, out, '--quick', HOLD_AT='before 2', HOLD_FILE=str(held))
    tool.wait_for(held)
    tool.kill()
    work_dir = out / '4_fold_0' / 'labeled_only' / 'seed_0'
    assert (work_dir / 'iter_2.pth').is_file() and not (out / 'results.json').exists()
    held.unlink()
    # The second time in a chain.
    where = dict(HOLD_AT='writing stage_1_a/iter_1.pth', HOLD_FILE=str(held))
    tool = start(project, out, '--quick', **where)
    tool.wait_for(held)
    tool.kill()
    text = start(project, out, '--quick', log=project / 'again.log').finish()
    assert '1 of 2 runs are to be trained' in text
    begun = re.findall(rf'steps +{STEPS}, from (\d+)', (work_dir / 'benchmark.log').read_text())
    assert begun == ['0', '2']
    assert json.loads((work_dir / 'benchmark.json').read_text())['attempts'] == 2
    # The runs of --quick are among those that nobody has interrupted.
    whole = shutil.copytree(finished[0], project / 'copied')
    start(project, whole, '--quick', '--summarize').finish()
    assert results_of(out) == results_of(whole)
    assert [row['method'] for row in results_of(out)['rows']] == ['labeled_only', 'dmt'] * 2


def test_finished_runs_are_not_trained_again(project, finished):
    out, _, _ = finished
    before = (out / 'results.json').read_text()
    text = start(project, out, '--only', '*/dmt/*', '--jobs', '2').finish()
    assert '0 of 2 runs are to be trained' in text
    assert (out / 'results.json').read_text() == before
    text = start(project, out, '--summarize').finish()
    assert '| labeled_only' in text


def test_reliability_of_each_run_is_measured_and_averaged(finished):
    out, _, _ = finished
    results = results_of(out)
    for method in ('labeled_only', 'mean_teacher', 'dmt'):
        row = rows_of(results, method)
        found = [record(out, method, seed)['reliability']['metrics'] for seed in SEEDS]
        for name in ('ECE', 'AURC', 'RSS', 'mIoU@90', 'BoundaryIoU'):
            assert row['reliability'][name] == pytest.approx(
                np.mean([f[name] for f in found]), abs=1e-6
            )
    assert 0 < rows_of(results, 'dmt')['reliability']['ECE'] < 1
    _, table = (out / 'results.md').read_text().split('### Reliability')
    (line,) = [line for line in table.split('###')[0].splitlines() if line.startswith('| dmt')]
    ece = rows_of(results, 'dmt')['reliability']['ECE']
    assert line.split('|')[2].strip() == f'{ece:.3f}'


def test_finished_runs_are_evaluated_again_without_training(project, finished):
    out = shutil.copytree(finished[0], project / 'evaluated')
    before, costs = results_of(finished[0]), results_of(finished[0], costs=True)
    files = sorted(out.glob('*/labeled_only/seed_0/evaluation/*.json'))
    for file in files:
        content = json.loads(file.read_text())
        del content['reliability']
        file.write_text(json.dumps(content))
    where = ['--only', '*/labeled_only/seed_0', '*/broken/*']
    start(project, out, '--summarize').finish()
    assert results_of(out) != before

    text = start(project, out, '--evaluate', *where).finish()

    assert '1 of 1 runs are to be trained' not in text and 'broken' not in text.split('#')[0]
    assert results_of(out) == before
    assert results_of(out, costs=True)['rows'][0]['cost'] == costs['rows'][0]['cost']
    log = (out / '4_fold_0/labeled_only/seed_0/benchmark.log').read_text()
    assert log.count(f'steps    {STEPS}, from') == 1


def test_a_refused_evaluation_leaves_the_results(project, finished):
    out = shutil.copytree(finished[0], project / 'refused')
    tool = start(project, out, '--evaluate', '--cfg-options', 'budget.student_steps=4')
    assert 'was begun with other settings' in tool.finish(check=False)
    start(project, out, '--summarize').finish()
    assert results_of(out) == results_of(finished[0])


def test_a_run_whose_evaluation_failed_is_not_trained_again(project, finished):
    out = shutil.copytree(finished[0], project / 'unevaluated')
    work_dir = out / '4_fold_0/labeled_only/seed_1'
    state = json.loads((work_dir / 'benchmark.json').read_text())
    (work_dir / 'benchmark.json').write_text(json.dumps(dict(state, state='trained')))
    config = (work_dir / 'config.py').read_text()
    (work_dir / 'config.py').write_text('broken(')
    only = ['--only', '*/labeled_only/*']
    tool = start(project, out, *only)
    assert 'labeled_only/seed_1: FAILED' in tool.finish(check=False)
    (work_dir / 'config.py').write_text(config)

    start(project, out, *only).finish()

    assert results_of(out) == results_of(finished[0])
    assert json.loads((work_dir / 'benchmark.json').read_text())['cost'] == state['cost']


def test_a_changed_plan_is_refused_with_the_differing_keys(project, finished):
    out, _, _ = finished
    tool = start(project, out, '--cfg-options', 'budget.student_steps=4')
    text = tool.finish(check=False)
    assert tool.process.exitcode != 0
    assert 'was begun with other settings' in text and 'train_cfg.max_iters: 3 -> 4' in text
    # Other labels under the same name, too.
    path = project / 'data' / 'labeled.txt'
    lines = path.read_text()
    path.write_text(''.join(lines.splitlines(keepends=True)[:-1]))
    try:
        text = start(project, out).finish(check=False)
    finally:
        path.write_text(lines)
    assert 'was begun with other settings' in text and 'list labeled.txt' in text


def test_a_folder_of_somebody_else_is_left_alone(project, tmp_path):
    folder = tmp_path / '4_fold_0' / 'dmt' / 'seed_0'
    folder.mkdir(parents=True)
    (folder / 'thesis.txt').touch()
    text = start(project, tmp_path, '--only', '*/dmt/seed_0', log=tmp_path / 'log').finish(False)
    assert "holds ['thesis.txt'], but no benchmark.json" in text


def test_two_processes_never_train_the_same_run(project):
    out = project / 'shared'
    only = ['--only', '*/labeled_only/*']
    held = project / 'held_by_first'
    first = start(project, out, *only, log=project / 'first.log', HOLD_AT='before 1',
                  HOLD_FILE=str(held))  # fmt: skip
    first.wait_for(held)
    text = start(project, out, *only, log=project / 'second.log', own_server=True).finish()
    # The one that the first process holds is left to it.
    assert 'labeled_only/seed_0: skipped: ' in text and 'being worked on by process' in text
    assert 'labeled_only/seed_1: mIoU' in text
    assert '1 of 8 runs are finished' in text
    first.kill()


def test_list_shows_steps_passes_and_times(project, finished):
    out, _, _ = finished
    text = start(project, out, '--list').finish()
    lines = {line.split('|')[1].strip(): line for line in text.splitlines() if '/seed_' in line}
    assert len(lines) == 8
    cells = [cell.strip() for cell in lines['4_fold_0/dmt/seed_1'].split('|')][2:6]
    assert cells[:3] == ['done', '2 + 1', str(STEPS * 24)]
    assert re.fullmatch(r'\d+ (s|min)', cells[3])  # on a busy machine it is minutes
    cells = [cell.strip() for cell in lines['4_fold_0/broken/seed_0'].split('|')][2:6]
    assert cells == ['failed', '3', str(STEPS * 12), '?']
    text = start(project, out, '--dry-run', '--shard', '1/2').finish()
    names = [line.split('|')[1].strip() for line in text.splitlines() if '/seed_' in line]
    assert names == []  # of this half all are done
    text = start(project, out, '--dry-run', '--shard', '2/2').finish()
    assert '4_fold_0/broken/seed_0' in text and '4_fold_0/broken/seed_1' in text


# ------------------------------------------------------------------------------ without training


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmark.py'
    spec = importlib.util.spec_from_file_location('benchmark_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shards_are_disjoint_and_complete(tool, project):
    runs = Plan.fromfile(str(project / 'plan.py')).runs
    for count in (1, 3, 5, 9):
        shards = [
            tool.chosen_runs(runs, Namespace(shard=(index, count), only=None))
            for index in range(1, count + 1)
        ]
        assert sorted(run for part in shards for run in part) == sorted(runs)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    only = Namespace(shard=(1, 2), only=['*/dmt/*'])
    assert [run.method for run in tool.chosen_runs(runs, only)] in ([], ['dmt'], ['dmt'] * 2)
    with pytest.raises(SystemExit, match=r"--only 'dmt' fits none of the runs:\n  4_fold_0"):
        tool.chosen_runs(runs, Namespace(shard=(1, 1), only=['dmt']))
    for text in ('0/2', '3/2', '2', 'a/b'):
        with pytest.raises(ArgumentTypeError, match='is not I/N'):
            tool.shard(text)


def test_each_job_has_its_part_of_the_machine(tool, project, monkeypatch):
    benchmark = tool.Benchmark(Plan.fromfile(str(project / 'plan.py')), str(project / 'out'))
    monkeypatch.setattr(tool, '_cores', lambda: 8)
    workers = tool.Workers(benchmark, 3, 8)
    job = workers._job('x', 0)
    assert job.threads == 2 and job.environment['OMP_NUM_THREADS'] == '2'
    monkeypatch.setattr(tool.torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    devices = [workers._job('x', slot).environment['CUDA_VISIBLE_DEVICES'] for slot in range(3)]
    assert devices == ['0', '1', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert workers._job('x', 1).environment['CUDA_VISIBLE_DEVICES'] == '7'


def test_labels_are_drawn_once_and_differ_between_seeds(tool, tmp_path):
    names = [f'{index:04d}' for index in range(20)]
    for seed in (0, 1):
        tool.draw_lists(tmp_path / str(seed), names, 5, [seed, 0])
    first, second = ((tmp_path / s / 'labeled.txt').read_text().split() for s in '01')
    assert len(first) == 5 and first != second
    rest = (tmp_path / '0' / 'unlabeled.txt').read_text().split()
    assert sorted(first + rest) == names
    before = (tmp_path / '0' / 'labeled.txt').stat().st_mtime_ns
    tool.draw_lists(tmp_path / '0', names, 5, [0, 0])
    assert (tmp_path / '0' / 'labeled.txt').stat().st_mtime_ns == before


def test_scenes_of_several_styles_are_painted_and_no_lists_drawn(tool, tmp_path):
    small = dict(num_train=3, num_val=1, num_test=1, num_labeled=2)
    scenes = [dict(small, root=str(tmp_path / style), style=style) for style in ('day', 'dusk')]
    plan = Namespace(dataset=dict(toy_scenes=scenes), lists=None, runs=[])
    tool.prepare(plan, None)
    for style in ('day', 'dusk'):
        settings = json.loads((tmp_path / style / 'manifest.json').read_text())
        assert settings.get('style', 'day') == style
        assert {path.name for path in (tmp_path / style / 'splits').iterdir()} == {
            f'{name}.txt' for name in ('labeled', 'unlabeled', 'train', 'val', 'test')
        }


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path):
    for name, scores in (('a', {1: 30.0, 2: 50.0}), ('b', {1: 40.0, 2: 45.0})):
        logs = tmp_path / name / '2026' / 'vis_data'
        logs.mkdir(parents=True)
        rows = [dict(lr=0.1, loss=1.0, step=1)]
        rows += [dict(mIoU=value, step=step) for step, value in scores.items()]
        lines = [json.dumps(row) for row in rows]
        (logs / 'scalars.json').write_text('\n'.join(lines) + '\n{"mIoU": 99, "st')
        best = max(scores, key=scores.get)
        (tmp_path / name / f'best_mIoU_iter_{best}.pth').touch()
    folders = [str(tmp_path / 'b'), str(tmp_path / 'a')]
    path = str(tmp_path / 'a' / 'best_mIoU_iter_2.pth')
    assert best_checkpoint(folders, 'mIoU') == (path, 50.0)
    assert best_checkpoint(folders[:1], 'mIoU')[1] == 45.0
    assert best_checkpoint([str(tmp_path)], 'mIoU') is None
