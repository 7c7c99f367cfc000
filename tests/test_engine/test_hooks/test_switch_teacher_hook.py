import logging
from types import SimpleNamespace

import pytest
from torch import nn

from mmdmt.datasets.samplers import MultiSourceSampler
from mmdmt.engine.hooks import SwitchTeacherHook


class Model(nn.Module):
    switched = 0

    def switch_teacher(self):
        self.switched += 1


class Sources(list):
    """34 labeled and 242 unlabeled images."""

    cumulative_sizes = (34, 276)


def runner(model=None, sampler=None, iteration=0):
    return SimpleNamespace(
        model=model or Model(),
        iter=iteration,
        train_dataloader=SimpleNamespace(sampler=sampler),
        logger=logging.getLogger('test'),
    )


def switches(hook, run, start, stop):
    """Iterations before which the teacher changes."""
    found = []
    for run.iter in range(start, stop):
        before = run.model.switched
        hook.before_train_iter(run, run.iter)
        found += [run.iter] * (run.model.switched - before)
    return found


def test_every_n_iterations():
    hook, run = SwitchTeacherHook(every=4), runner()
    hook.before_train(run)
    assert switches(hook, run, 0, 13) == [4, 8, 12]


@pytest.mark.parametrize('resumed_at', [3, 4, 5])
def test_a_resumed_run_switches_when_an_uninterrupted_one_does(resumed_at):
    """Also where the checkpoint was written between two shifts."""
    hook, run = SwitchTeacherHook(every=4), runner()
    hook.before_train(run)
    before = switches(hook, run, 0, resumed_at)
    assert before + switches(hook, run, resumed_at, 13) == [4, 8, 12]


def test_every_epoch_of_the_labeled_images():
    sampler = MultiSourceSampler(Sources(range(276)), batch_size=16, source_ratio=[1, 1], seed=0)
    hook, run = SwitchTeacherHook(), runner(sampler=sampler)
    hook.before_train(run)
    assert hook.shift_iters == 5  # 34 labeled images, 8 in a batch
    assert switches(hook, run, 0, 12) == [5, 10]
    unlabeled = SwitchTeacherHook(source=1)
    unlabeled.before_train(run)
    assert unlabeled.shift_iters == 31


def test_a_sampler_that_knows_no_epochs_is_refused():
    with pytest.raises(TypeError, match='MultiSourceSampler'):
        SwitchTeacherHook().before_train(runner(sampler=object()))


def test_a_model_without_shifts_is_refused():
    with pytest.raises(TypeError, match='DualTeacher, got Linear'):
        SwitchTeacherHook(every=2).before_train(runner(model=nn.Linear(1, 1)))


@pytest.mark.parametrize('every', [0, -1, 2.5, 'iter', True])
def test_a_bad_period_is_refused(every):
    with pytest.raises(ValueError, match='every'):
        SwitchTeacherHook(every=every)
