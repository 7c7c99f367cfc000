"""Dual Teacher as users run it: trained, killed in the middle of a shift, evaluated, exported."""

import json
import math

import pytest
import torch
from forked_tool import forked_ranks
from interruptions import add_hook, kill_held, make_hook, train
from mmengine.registry import RUNNERS
from mmseg.apis import init_model
from tiny_project import base_config, labeled_only, load_config, make_tree, online, write_config

from mmdmt.export.segmentor import export_segmentor

MAX_ITERS = 9


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    # Two labeled images in a batch: a pass over 7 of them is 4 iterations.
    return make_tree(tmp_path_factory.mktemp('tree'), labeled=7, unlabeled=5)


def config(tree, work_dir, shift_length='epoch', interval=MAX_ITERS, **kwargs):
    """A run that is neither validated nor saved in between, which takes the most time."""
    cfg = base_config(tree, work_dir, max_iters=MAX_ITERS, interval=interval, **kwargs)
    settings = dict(threshold=0.3, sub_model=dict(drop_rate=0.5), shift_length=shift_length)
    cfg = online(cfg, 'mmdmt.DualTeacher', **settings)
    cfg['custom_hooks'] = [dict(type='mmdmt.CouplingHook', interval=1)]
    cfg['train_cfg']['val_interval'] = MAX_ITERS + 1
    return cfg


@pytest.fixture(scope='module')
def trained(tree, tmp_path_factory):
    """A finished run: (work dir, runner)."""
    work_dir = tmp_path_factory.mktemp('run')
    torch.set_num_threads(1)
    cfg = config(tree, work_dir, interval=3)
    cfg['train_cfg']['val_interval'] = 3
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    cfg['default_hooks']['checkpoint'].update(
        save_best=['student/mIoU', 'teacher_0/mIoU', 'teacher_1/mIoU'], rule='greater'
    )
    runner = RUNNERS.build(load_config(cfg, work_dir / 'dual_teacher.py'))
    runner.train()
    return work_dir, runner


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def values(runner, name):
    return runner.message_hub.get_scalar(name).data[0].tolist()


def test_teachers_take_turns_every_pass_over_the_labeled_images(trained):
    work_dir, runner = trained
    assert values(runner, 'train/on_duty') == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    state = load(work_dir / f'iter_{MAX_ITERS}.pth')['state_dict']
    assert state['iterations'].item() == runner.model.step == 9
    assert runner.model.teacher_step('teacher_0') == 1  # counted from the start of this shift
    for name, value in runner.model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_teacher_off_duty_stays_as_it_is(trained):
    """Between iterations 3 and 6 the turn changes from teacher 0, after its fourth step, to 1."""
    work_dir, _ = trained
    before, after = (load(work_dir / f'iter_{n}.pth')['state_dict'] for n in (6, MAX_ITERS))
    key = 'decode_head.conv_seg.weight'
    assert not torch.equal(before[f'teacher_0.{key}'], after[f'teacher_0.{key}'])
    assert not torch.equal(before[f'teacher_1.{key}'], after[f'teacher_1.{key}'])
    assert before['iterations'].item() == 6


def test_optimizer_holds_the_student_only(trained):
    _, runner = trained
    students = {id(p) for p in runner.model.student.parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    updated = {id(p) for group in groups for p in group['params'] if p.requires_grad}
    assert updated == students


def test_coupling_is_logged_for_the_teacher_on_duty_and_for_each(trained):
    _, runner = trained
    for kind in ('distance', 'disagreement'):
        duty = values(runner, f'train/coupling_{kind}')
        each = [values(runner, f'train/teacher_{i}/{kind}') for i in range(2)]
        on_duty = [int(i) for i in values(runner, 'train/on_duty')]
        assert duty == [each[i][step] for step, i in enumerate(on_duty)]
        assert all(math.isfinite(value) and value >= 0 for value in duty)
    # The first step of a teacher makes it the student.
    distance = values(runner, 'train/coupling_distance')
    assert distance[0] == distance[4] == 0 and min(distance[1:4]) > 0


def test_measuring_changes_nothing_in_training(trained, tree, tmp_path):
    cfg = config(tree, tmp_path)
    del cfg['custom_hooks']
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'dual_teacher.py'))
    runner.train()
    for key, value in trained[1].model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[key], value), key


def test_student_and_teachers_are_evaluated_and_the_best_is_kept(trained):
    work_dir, runner = trained
    scalars = runner.message_hub.log_scalars
    assert scalars['val/mIoU'].current() == scalars['val/student/mIoU'].current()
    for name in ('student', 'teacher_0', 'teacher_1'):
        found = values(runner, f'val/{name}/mIoU')
        assert len(found) == 3
        best = list(work_dir.glob(f'best_{name}_mIoU_iter_*.pth'))
        assert len(best) == 1
        # The first of equally good ones is kept.
        expected = (found.index(max(found)) + 1) * 3
        assert best[0].stem.endswith(f'iter_{expected}')


def test_any_network_is_exported(trained, tmp_path):
    work_dir, runner = trained
    images = torch.randn(1, 3, 32, 32)
    checkpoint = work_dir / f'iter_{MAX_ITERS}.pth'
    runner.model.eval()
    for name in ('student', 'teacher_0', 'teacher_1'):
        written = export_segmentor(
            work_dir / f'iter_{MAX_ITERS}.pth', tmp_path / name, network=name
        )
        model = init_model(str(written.config), str(written.checkpoint), device='cpu')
        assert written.foreign_types == []
        with torch.no_grad():
            expected = runner.model.network(name)(images)
            assert torch.equal(model(images), expected)
    auto = export_segmentor(checkpoint, tmp_path / 'auto')
    assert auto.network == 'student'


def test_a_run_killed_in_the_middle_of_a_shift_ends_with_the_same_weights(trained, tree, tmp_path):
    """Shifts begin at iterations 4 and 8: from 3 the duty changes twice."""
    cfg = add_hook(config(tree, tmp_path, interval=3, num_workers=2))
    path = write_config(cfg, tmp_path / 'dual_teacher.py')
    kill_held(make_hook(tree), path, 'after 3')
    assert (tmp_path / 'iter_3.pth').exists()
    train(tree, path, '--resume').finish()
    expected, found = (load(d / f'iter_{MAX_ITERS}.pth') for d in (trained[0], tmp_path))
    for key, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    for index, state in expected['optimizer']['state'].items():
        other = found['optimizer']['state'][index]['momentum_buffer']
        assert torch.equal(other, state['momentum_buffer'])


def test_a_checkpoint_between_two_shifts_switches_once(tree, tmp_path):
    """With shifts of 3 iterations that of iteration 6 lies between two."""
    cfg = config(tree, tmp_path / 'a', shift_length=3, interval=6)
    whole = RUNNERS.build(load_config(cfg, tmp_path / 'a.py'))
    whole.train()
    cfg = config(tree, tmp_path / 'b', shift_length=3)
    cfg.update(resume=True, load_from=str(tmp_path / 'a' / 'iter_6.pth'))
    resumed = RUNNERS.build(load_config(cfg, tmp_path / 'b.py'))
    resumed.train()
    assert values(resumed, 'train/on_duty')[-3:] == [0, 0, 0]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_two_processes_take_turns_together(tree, tmp_path):
    """A pass over 7 labeled images is 2 iterations of 2 + 2; skipped blocks block no reduction."""
    cfg = write_config(config(tree, tmp_path), tmp_path / 'dual_teacher.py')
    ranks = forked_ranks('train.py', cfg, log=tmp_path / 'ranks.log')
    for tool in ranks:
        tool.finish()
    assert load(tmp_path / f'iter_{MAX_ITERS}.pth')['state_dict']['iterations'].item() == 9
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    on_duty = [line['on_duty'] for line in lines if 'on_duty' in line]
    assert on_duty == [0, 0, 1, 1, 0, 0, 1, 1, 0]


def test_a_supervised_checkpoint_goes_into_all_networks(tree, tmp_path):
    cfg = labeled_only(base_config(tree, tmp_path / 'a', max_iters=2))
    RUNNERS.build(load_config(cfg, tmp_path / 'a.py')).train()
    cfg = config(tree, tmp_path / 'b')
    cfg['load_from'] = str(tmp_path / 'a' / 'iter_2.pth')
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'b.py'))
    runner.load_or_resume()
    plain = load(tmp_path / 'a' / 'iter_2.pth')['state_dict']
    for name in ('student', 'teacher_0', 'teacher_1'):
        state = runner.model.network(name).state_dict()
        assert all(torch.equal(state[key], value) for key, value in plain.items())
