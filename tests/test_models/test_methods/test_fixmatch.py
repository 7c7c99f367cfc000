import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import FixMatch


def build(**settings):
    torch.manual_seed(0)
    model = FixMatch(tiny_segmentor(dropout=0), **settings)
    model.start_run(10)
    return model


def statistics(network):
    return {key: value.clone() for key, value in network.named_buffers()}


@pytest.mark.parametrize('labeler', ['student', 'teacher'])
def test_loss_is_half_the_supervised_and_half_the_masked_cross_entropy(labeler):
    model = build(labeler=labeler)
    inputs, samples = semi_batch()
    labeling = copy.deepcopy(model.network(labeler)).eval()
    confidence, label = dense_logits(labeling, inputs['unsup_weak']).softmax(1).max(1)
    threshold = model.threshold.value = confidence.median().item()
    model.eval()
    losses = model.loss(inputs, samples)
    plain = model.student.loss(inputs['sup'], samples['sup'])
    torch.testing.assert_close(losses['sup_decode.loss_ce'], 0.5 * plain['decode.loss_ce'])
    kept = confidence >= threshold
    assert 0 < kept.sum() < kept.numel()
    ce = F.cross_entropy(dense_logits(model.student, inputs['unsup_weak']), label, reduction='none')
    torch.testing.assert_close(losses['unsup_loss'], 0.5 * (ce * kept).sum() / kept.numel())
    torch.testing.assert_close(losses['unsup_keep_ratio'], kept.float().mean())


def test_a_student_labels_in_eval_mode_and_leaves_its_statistics_alone(monkeypatch):
    model = build(threshold=0.0).train()
    inputs, samples = semi_batch()
    modes = {}
    before = statistics(model.student)
    expected = copy.deepcopy(model.student)
    original = model.strong_view

    def after_labeling(*args):
        modes['changed'] = [
            key
            for key, value in model.student.named_buffers()
            if not torch.equal(value, before[key])
        ]
        modes['training'] = all(module.training for module in model.student.modules())
        return original(*args)

    monkeypatch.setattr(model, 'strong_view', after_labeling)
    losses = model.loss(inputs, samples)
    assert modes == dict(changed=[], training=True)
    # The labels are those of eval mode.
    confidence = dense_logits(expected.eval(), inputs['unsup_weak']).softmax(1).amax(1)
    torch.testing.assert_close(losses['unsup_confidence'], confidence.mean())


def test_one_student_needs_no_teacher():
    model = build()
    assert model.network_names == ['student'] and model.predict_on == 'student'
    before = copy.deepcopy(model.student.state_dict())
    model.after_step()
    assert model.step == 1
    assert all(torch.equal(before[key], value) for key, value in model.student.state_dict().items())


def test_a_teacher_labels_and_follows():
    model = build(labeler='teacher', ema=dict(momentum=0.996)).train()
    assert model.network_names == ['student', 'teacher'] and model.predict_on == 'teacher'
    assert not any(module.training for module in model.teacher.modules())
    losses = model.loss(*semi_batch())
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    model.after_step()
    for teacher, student in zip(model.teacher.parameters(), model.student.parameters()):
        assert torch.equal(teacher, student)


def test_views_are_mixed():
    mix = dict(type='mmdmt.CutMix', prob=1.0, partner='flip')
    model = build(threshold=0.0, strong=dict(type='mmdmt.StrongAugment'), mix=mix).train()
    losses = model.loss(*semi_batch(num_unlabeled=2))
    assert losses['unsup_keep_ratio'] == 1 and losses['unsup_loss'] > 0


def test_an_unknown_labeler_is_refused():
    with pytest.raises(ValueError, match=r"labeler` must be one of .*'student', 'teacher'.*'peer'"):
        build(labeler='peer')


def test_a_teacher_labels_in_the_mode_that_it_is_given():
    model = build(labeler='teacher', ema=dict(mode='train', buffers='keep')).train()
    inputs, samples = semi_batch()
    before = statistics(model.teacher)
    model.loss(inputs, samples)
    assert not torch.equal(
        before['backbone.bn1.running_mean'], model.teacher.backbone.bn1.running_mean
    )
