from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from tiny_dual_teacher import build, nudge
from tiny_models import NUM_CLASSES, labeled_samples, tiny_segmentor, unlabeled_samples
from torch import nn

from mmdmt.engine.hooks import CouplingHook, MethodHook
from mmdmt.models.methods import FixMatch, MeanTeacher


def raw_batch(num_labeled=2, num_unlabeled=2, size=32):
    """Images and data samples as the loader collates them."""
    count = num_labeled + num_unlabeled
    images = list(torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8))
    labels = torch.randint(0, NUM_CLASSES, (num_labeled, size, size))
    valid = torch.ones(num_unlabeled, size, size, dtype=torch.bool)
    return dict(inputs=images, data_samples=labeled_samples(labels) + unlabeled_samples(valid))


def train(model, iters, batch=None, hook=None):
    """Iterations in which the student moves; returns the scalars that were logged."""
    runner = SimpleNamespace(
        model=model,
        message_hub=MessageHub('coupling'),
        optim_wrapper=SimpleNamespace(),
        max_iters=iters,
    )
    hook, batch = hook or CouplingHook(interval=1), batch or raw_batch()
    for runner.iter in range(iters):
        hook.before_train_iter(runner, runner.iter, batch)
        nudge(model)
        MethodHook().after_train_iter(runner, runner.iter)
        hook.after_train_iter(runner, runner.iter, batch)
    scalars = runner.message_hub.log_scalars
    return {name: value.data[0].tolist() for name, value in scalars.items()}


def test_the_teacher_on_duty_is_measured_after_it_has_moved():
    logged = train(build(shift_length=2), 4)
    for kind in ('distance', 'disagreement'):
        each = [logged[f'train/teacher_{index}/{kind}'] for index in range(2)]
        duty = [each[0][0], each[0][1], each[1][2], each[1][3]]
        assert logged[f'train/coupling_{kind}'] == duty
    # The first step of a teacher makes it the student.
    distance = logged['train/coupling_distance']
    assert distance[0] == distance[2] == 0 and min(distance[1], distance[3]) > 0


def test_a_single_teacher_is_logged_once_and_now_and_then():
    logged = train(MeanTeacher(tiny_segmentor()), 7, hook=CouplingHook(interval=3))
    assert set(logged) == {'train/coupling_distance', 'train/coupling_disagreement'}
    assert len(logged['train/coupling_distance']) == 2


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(0)
    hook, model, batch = CouplingHook(interval=1), build(), raw_batch()
    runner = SimpleNamespace(model=model.train(), iter=0, message_hub=MessageHub('coupling'))
    torch.manual_seed(0)
    hook.before_train_iter(runner, 0, batch)
    hook.after_train_iter(runner, 0, batch)
    assert len(runner.message_hub.log_scalars) == 6
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.Linear(1, 1)


@pytest.mark.parametrize('model', [Plain, lambda: FixMatch(tiny_segmentor())])
def test_models_without_teachers_are_left_alone(model):
    assert train(model(), 2) == {}


def test_a_batch_without_unlabeled_images_is_not_measured():
    assert train(build(), 2, raw_batch(num_unlabeled=0)) == {}


def test_an_interval_is_positive():
    with pytest.raises(ValueError, match=r'CouplingHook\.interval'):
        CouplingHook(interval=0)
