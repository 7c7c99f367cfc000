"""The benchmark finds the passes of any method, and times them and the parts of a step."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from tiny_project import base_config, labeled_only, mean_teacher, online

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'benchmark_step.py'


def load_tool():
    spec = importlib.util.spec_from_file_location('benchmark_step', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_tool()


def dual_teacher(cfg):
    return online(cfg, 'mmdmt.DualTeacher', threshold=0.3)


def prevmatch(cfg):
    return online(cfg, 'mmdmt.FixMatch', previous=dict(every='epoch', keep=2))


def unimatch(cfg):
    return online(cfg, 'mmdmt.UniMatch')


METHODS = dict(
    supervised=labeled_only,
    mean_teacher=mean_teacher,
    dual_teacher=dual_teacher,
    prevmatch=prevmatch,
    unimatch=unimatch,
)


def write(tmp_path, method):
    cfg = Config(METHODS[method](base_config(tmp_path, tmp_path)))
    cfg.default_scope = 'mmseg'
    path = tmp_path / f'{method}.py'
    cfg.dump(path)
    return path


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args), '--device', 'cpu'])
    bench.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ('method', 'passes'),
    [
        ('supervised', ['network, 4 images: forward, loss, backward']),
        (
            'mean_teacher',
            ['teacher, 2 images: forward', 'student, 4 images: forward, loss, backward'],
        ),
        (
            'dual_teacher',
            [
                'teacher_0, 2 images: forward',
                'student, 4 images: forward, loss, backward',
                'student, 2 images: forward, loss, backward',
            ],
        ),
        # Dropped features pass through the head alone.
        (
            'unimatch',
            [
                'student, 4 images (head 6): forward, loss, backward',
                'student, 4 images: forward, loss, backward',
            ],
        ),
        # Its own labels, and those of the two copies that are kept.
        (
            'prevmatch',
            ['student, 2 images: forward'] * 3 + ['student, 4 images: forward, loss, backward'],
        ),
    ],
)
def test_passes_of_a_method_and_the_table(tmp_path, monkeypatch, capsys, method, passes):
    printed = run(monkeypatch, capsys, write(tmp_path, method), '--rounds', 2, '--warmup', 1)
    found = re.findall(r'^\| \d+\. (.*?) +\| +[\d.]+ \|$', printed, re.MULTILINE)
    assert found == passes
    # The parts make up the step, but for what lies between them.
    shares = dict(re.findall(r'^\| (.*?) +\| +[\d.]+ \| +([\d.]+)% \|$', printed, re.MULTILINE))
    whole = float(shares.pop('whole step'))
    assert whole == 100.0
    wanted = {'preprocessor', 'backward', 'optimizer', 'views, pseudo-labels, losses'}
    assert wanted <= set(shares)
    assert ('teachers follow' in shares) == (method != 'supervised')
    assert 30 < sum(map(float, shares.values())) < 130
    assert re.search(r'overhead over the bare passes: -?[\d.]+% \(median of rounds; ', printed)


def test_size_and_batch_size_of_the_command_line(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, 'mean_teacher')
    args = ['--rounds', 1, '--warmup', 1, '--size', 16, 40, '--batch-size', 6, '--clock', 'cpu']
    printed = run(monkeypatch, capsys, path, *args)
    assert '3 labeled and 3 unlabeled images of 16x40' in printed
    assert 'student, 6 images' in printed and 'cpu clock' in printed


def test_too_much_overhead_fails(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, 'supervised')
    with pytest.raises(SystemExit, match='The overhead is above'):
        run(monkeypatch, capsys, path, '--rounds', 1, '--warmup', 1, '--max-overhead', -99)


def options(**changes):
    return bench.argparse.Namespace(
        **dict(dict(device='cpu', clock='wall', warmup=1, rounds=2, size=None), **changes)
    )


def test_blocks_are_not_skipped_and_all_shifts_are_measured(tmp_path):
    cfg = Config.fromfile(write(tmp_path, 'dual_teacher'))
    model = bench.build_model(cfg, options())
    assert model.sub_model.blocks and model.sub_model.draw(0) == []
    used = []
    after_step = model.after_step
    model.after_step = lambda: (used.append(model.on_duty), after_step())
    measured = bench.measure(model, cfg, options())
    assert used == [0, 1, 0, 1]
    assert {'forward: teacher_0', 'forward: teacher_1'} <= set(measured.parts)
    assert len(measured.ratios) == 2
    assert 0 < measured.ratios[0] <= measured.overhead + 1 <= measured.ratios[1]


def test_a_bare_pass_leaves_gradients_or_none(tmp_path):
    cfg = Config.fromfile(write(tmp_path, 'mean_teacher'))
    model = bench.build_model(cfg, options())
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    bench.bare_pass(model, bench.Pass('teacher', (2, 3, 16, 16), False, False), 'cpu')()
    assert all(p.grad is None for p in model.parameters())
    bench.bare_pass(model, bench.Pass('student', (2, 3, 16, 16), True, True), 'cpu')()
    assert any(torch.any(p.grad != 0) for p in model.student.parameters() if p.grad is not None)
    optim_wrapper.zero_grad()


def test_methods_are_composed_with_a_baseline_and_compared(monkeypatch, capsys):
    baseline = TOOL.parents[2] / 'configs' / 'supervised' / 'fcn_unet_toy-scenes-96x96.py'
    names = ['mean_teacher', 'cps']
    out = run(
        monkeypatch, capsys, baseline, '--method', *names,
        '--size', 32, 32, '--batch-size', 4, '--rounds', 1, '--warmup', 1,
    )  # fmt: skip
    assert '1. teacher, 2 images: forward' in out and 'student_r' in out
    rows = re.findall(r'^\| (\w+) +\| +[\d.]+ \| +-?[\d.]+% \(median', out, re.M)
    assert rows == names


def test_a_config_without_a_size_is_refused(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, 'supervised')
    cfg = Config.fromfile(path)
    cfg.model.data_preprocessor.pop('size')
    cfg.model.data_preprocessor.size_divisor = 8
    cfg.dump(path)
    with pytest.raises(SystemExit, match='--size H W'):
        run(monkeypatch, capsys, path)
