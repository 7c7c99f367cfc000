import copy

import torch
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.coupling import (
    coupling,
    disagreement,
    parameter_distance,
    predicted_classes,
)
from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import DualTeacher, MeanTeacher


def test_distance_is_relative_to_the_students_size():
    student = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    teacher = copy.deepcopy(student)
    assert parameter_distance(teacher, student).item() == 0
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.25)
    torch.testing.assert_close(parameter_distance(teacher, student), torch.tensor(0.25))


def test_distance_counts_all_parameters_together():
    student, teacher = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[3.0, 0.0]]))
        student.bias.fill_(4.0)
        teacher.weight.copy_(torch.tensor([[3.0, 3.0]]))
        teacher.bias.fill_(0.0)
    torch.testing.assert_close(parameter_distance(teacher, student), torch.tensor(1.0))  # 5 / 5


def test_disagreement_leaves_padding_out():
    first, second = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, 1, 0, 0]]])
    everywhere = torch.ones(1, 1, 4, dtype=torch.bool)
    assert disagreement(first, second, everywhere).item() == 0.5
    valid = torch.tensor([[[True, True, True, False]]])
    torch.testing.assert_close(disagreement(first, second, valid), torch.tensor(1 / 3))
    assert disagreement(first, second, valid & False).item() == 0


def test_predictions_are_made_in_eval_mode_and_leave_no_trace():
    model = MeanTeacher(tiny_segmentor(dropout=0.9)).train()
    model.student.backbone.eval()
    before = copy.deepcopy(model.student.state_dict())
    images = torch.randn(2, 3, 32, 32)
    found = predicted_classes(model.student, images)
    assert model.student.training and not model.student.backbone.training
    for key, value in model.student.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(found, dense_logits(model.student.eval(), images).argmax(1))


def test_every_teacher_is_compared_with_its_student():
    torch.manual_seed(0)
    model = DualTeacher(tiny_segmentor(), shift_length=1)
    model.reset_teachers()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.after_step()  # teacher_0 becomes the student
    found = coupling(model, semi_batch()[0])
    assert set(found) == {'teacher_0', 'teacher_1'}
    assert found['teacher_0']['distance'].item() == found['teacher_0']['disagreement'].item() == 0
    assert found['teacher_1']['distance'].item() > 0.1
    assert 0 < found['teacher_1']['disagreement'].item() <= 1
