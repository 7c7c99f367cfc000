from types import SimpleNamespace

import pytest
from tiny_models import tiny_segmentor
from torch import nn

from mmdmt.engine.hooks import TeacherUpdateHook
from mmdmt.models.methods import MeanTeacher


def runner(model, accumulate=1, max_iters=100):
    wrapper = SimpleNamespace(_accumulative_counts=accumulate)
    return SimpleNamespace(model=model, optim_wrapper=wrapper, max_iters=max_iters)


def test_teachers_move_once_per_iteration():
    model = MeanTeacher(tiny_segmentor())
    hook = TeacherUpdateHook()
    hook.before_train(runner(model))
    for iteration in range(3):
        hook.after_train_iter(runner(model), iteration)
    assert model._ema_steps == [3] and model.teacher_hook_attached


def test_with_accumulated_gradients_teachers_move_with_the_optimizer():
    model = MeanTeacher(tiny_segmentor())
    for iteration in range(10):
        TeacherUpdateHook().after_train_iter(runner(model, 4, max_iters=10), iteration)
    assert model._ema_steps == [3]  # after iterations 4, 8 and, cut short, 10


def test_a_model_without_teachers_is_refused():
    with pytest.raises(TypeError, match=r'TeacherUpdateHook needs a model.*Linear'):
        TeacherUpdateHook().before_train(runner(nn.Linear(1, 1)))
