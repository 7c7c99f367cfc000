import pytest
import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import UniMatchV2

MIX = dict(type='mmdmt.CutMix', prob=1.0, partner='flip')


def build(segmentor=None, **settings):
    torch.manual_seed(0)
    model = UniMatchV2(segmentor or tiny_segmentor(dropout=0), **settings)
    model.start_run(10)
    return model


def test_the_loss_is_that_of_the_paper(monkeypatch):
    """(supervised + (strong_1 + strong_2) / 2) / 2; without dropout, as the draws are its own."""
    model = build(mix=MIX, clean_share=1.0).eval()
    inputs, samples = semi_batch(num_unlabeled=4)
    weak = inputs['unsup_weak']
    confidence, label = dense_logits(model.teacher, weak).softmax(1).max(1)
    threshold = model.threshold.value = confidence.median().item()
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    losses = model.loss(inputs, samples)
    plain = model.student.loss(inputs['sup'], samples['sup'])
    torch.testing.assert_close(losses['sup_decode.loss_ce'], 0.5 * plain['decode.loss_ce'])
    strong = 0
    assert len(drawn) == 2
    for mixing in drawn:
        assert mixing.partner.tolist() == [3, 2, 1, 0]
        view, target, sure = mixing(weak, label, confidence)
        cross_entropy = F.cross_entropy(dense_logits(model.student, view), target, reduction='none')
        strong += (cross_entropy * (sure >= threshold)).mean()
    torch.testing.assert_close(losses['unsup_loss'], 0.5 * strong / 2)


@pytest.mark.parametrize('segmentor', [tiny_segmentor(auxiliary=True), tiny_segformer()])
def test_one_pass_of_the_student_sees_labeled_images_and_both_views(segmentor, monkeypatch):
    model = build(
        segmentor, strong=dict(type='mmdmt.StrongAugment'), mix=MIX, threshold=0.0
    ).train()
    seen, maps = [], []
    transform = model.student.decode_head._transform_inputs
    model.student.backbone.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    monkeypatch.setattr(
        model.student.decode_head,
        '_transform_inputs',
        lambda found: maps.extend(found) or transform(found),
    )
    losses = model.loss(*semi_batch(num_labeled=2, num_unlabeled=4))
    assert seen == [2 + 2 * 4]
    assert maps
    for each in maps:
        empty = (each == 0).flatten(2).all(2)
        first, second = empty[2:].chunk(2)
        assert not (first & second).any(), 'each channel survives in one of the views'
    assert losses['unsup_keep_ratio'] == 1 and losses['unsup_loss'] > 0


def test_dropout_changes_the_loss_of_the_views_and_not_the_supervised_one():
    inputs, samples = semi_batch(num_unlabeled=4)
    found = [build(clean_share=share, threshold=0.0).eval() for share in (0.0, 1.0)]
    dropped, clean = (model.loss(inputs, samples) for model in found)
    assert not torch.isclose(dropped['unsup_loss'], clean['unsup_loss'])
    torch.testing.assert_close(dropped['sup_decode.loss_ce'], clean['sup_decode.loss_ce'])


def test_the_teacher_labels_in_eval_mode_follows_and_predicts():
    model = build(ema=dict(momentum=0.996)).train()
    assert model.network_names == ['student', 'teacher'] and model.predict_on == 'teacher'
    assert not any(module.training for module in model.teacher.modules())
    losses = model.loss(*semi_batch())
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    with torch.no_grad():
        next(model.student.parameters()).add_(1)
    model.after_step()
    for teacher, student in zip(model.teacher.parameters(), model.student.parameters()):
        assert torch.equal(teacher, student), 'at step 0 the decay is 0'


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match='clean_share'):
        build(clean_share=-0.1)
