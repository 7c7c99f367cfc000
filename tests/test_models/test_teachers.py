import pytest
import torch
from torch import nn

from mmdmt.models.teachers import EMAUpdater


def pair():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    teacher = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    return teacher, student


def train_statistics(module, mean=10.0, batches=50):
    module.train()
    for _ in range(batches):
        module(torch.randn(8, 4, 4, 4) + mean)


def test_first_update_makes_the_teacher_the_student():
    teacher, student = pair()
    EMAUpdater(0.99).update(teacher, student, step=0)
    for target, source in zip(teacher.state_dict().values(), student.state_dict().values()):
        assert torch.equal(target, source)


@pytest.mark.parametrize(('step', 'expected'), [(0, 0.0), (1, 0.5), (3, 0.75), (1000, 0.99)])
def test_momentum_is_a_running_mean_that_becomes_exponential(step, expected):
    assert EMAUpdater(0.99).momentum_at(step) == pytest.approx(expected)
    assert EMAUpdater(0.99, warmup=False).momentum_at(step) == 0.99


def test_update_is_the_weighted_mean_of_the_parameters():
    teacher, student = pair()
    before = [p.clone() for p in teacher.parameters()]
    EMAUpdater(0.9).update(teacher, student, step=100)
    for old, new, source in zip(before, teacher.parameters(), student.parameters()):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


@pytest.mark.parametrize(('buffers', 'reaches'), [('ema', 10.0), ('copy', 10.0), ('keep', 0.0)])
def test_batch_norm_statistics_follow_the_student_by_rule(buffers, reaches):
    teacher, student = pair()
    train_statistics(student[1])
    updater = EMAUpdater(0.9, buffers=buffers, warmup=False)
    for step in range(100):
        updater.update(teacher, student, step)
    assert teacher[1].running_mean.mean().item() == pytest.approx(reaches, abs=0.3)


@pytest.mark.parametrize('buffers', ['ema', 'copy', 'keep'])
def test_integer_buffers_are_copied(buffers):
    teacher, student = pair()
    student[1].num_batches_tracked.fill_(7)
    EMAUpdater(0.9, buffers=buffers, warmup=False).update(teacher, student, step=1)
    assert teacher[1].num_batches_tracked.item() == 7
    assert teacher[1].num_batches_tracked.dtype == torch.long


@pytest.mark.parametrize('wrong', [dict(momentum=1.5), dict(buffers='mean')])
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EMAUpdater(**wrong)
