import pytest
import torch
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import CutMixSeg


def build(**settings):
    torch.manual_seed(0)
    model = CutMixSeg(tiny_segmentor(dropout=0), **settings)
    model.start_run(10)
    return model


def run(model, monkeypatch, **batch):
    """Losses of a step, and what is to be found again: logits, mixed targets and confidence."""
    inputs, samples = semi_batch(**batch)
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    losses = model.loss(inputs, samples)
    (mixing,) = drawn
    weak = inputs['unsup_weak']
    probs = dense_logits(model.teacher, weak).softmax(1)
    view, target = mixing(weak, probs)
    return losses, dense_logits(model.student, view), target, mixing


@pytest.mark.parametrize('per_pixel', [False, True])
def test_the_loss_is_the_squared_error_to_mixed_probabilities(per_pixel, monkeypatch):
    model = build(per_pixel=per_pixel, threshold=0.3, unsup_weight=2.0).eval()
    losses, logits, target, mixing = run(model, monkeypatch)
    assert 0 < mixing.mask.float().mean() < 1
    kept = (target.amax(1) >= 0.3).float()
    assert 0 < kept.mean() < 1
    error = (logits.softmax(1) - target).pow(2).sum(1)
    expected = (error * kept).mean() if per_pixel else error.mean() * kept.mean()
    torch.testing.assert_close(losses['unsup_loss'], 2 * expected)
    torch.testing.assert_close(losses['unsup_keep_ratio'], kept.mean())


def test_by_default_a_box_of_half_the_area_is_pasted(monkeypatch):
    model = build().eval()
    *_, mixing = run(model, monkeypatch, num_unlabeled=8, size=64)
    share = (~mixing.mask).float().mean(dim=(1, 2))
    assert (share - 0.5).abs().max() < 0.05


def test_padding_does_not_count(monkeypatch):
    model = build(threshold=0.0).eval()
    inputs, samples = semi_batch(num_unlabeled=2)
    inputs['unsup_valid'][:, :, 16:] = False
    for sample in samples['unsup']:
        sample.set_metainfo(dict(padding_size=(0, 16, 0, 0)))
    monkeypatch.setattr(model.mix, 'prob', 0.0)
    losses = model.loss(inputs, samples)
    weak = inputs['unsup_weak']
    pair = [dense_logits(net, weak).softmax(1) for net in (model.student, model.teacher)]
    error = (pair[0] - pair[1]).pow(2).sum(1)
    torch.testing.assert_close(losses['unsup_loss'], error[:, :, :16].mean())


def test_the_gradient_reaches_the_student_alone():
    model = build(threshold=0.0).train()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.1)
    model.loss(*semi_batch())['unsup_loss'].backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert sum(p.grad.abs().sum() for p in model.student.parameters() if p.grad is not None) > 0


def test_settings_are_checked():
    with pytest.raises(ValueError, match='threshold'):
        build(threshold=1.5)
    with pytest.raises(TypeError, match=r"no setting \['confidence'\].*'per_pixel'"):
        build(confidence=0.9)
