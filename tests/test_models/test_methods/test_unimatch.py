import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import Targets, dense_logits
from mmdmt.models.methods import UniMatch, unimatch

MIX = dict(type='mmdmt.CutMix', prob=1.0, area=(0.2, 0.4))


def build(segmentor=None, **settings):
    torch.manual_seed(0)
    model = UniMatch(segmentor or tiny_segmentor(dropout=0), **settings)
    model.start_run(10)
    return model


def masked(logits, label, kept, count):
    cross_entropy = F.cross_entropy(logits, label, reduction='none')
    return (cross_entropy * kept).sum() / count


def test_the_loss_is_that_of_the_paper(monkeypatch):
    """(supervised + strong_1 / 4 + strong_2 / 4 + feature / 2) / 2, with both kinds of labels."""
    model = build(mix=MIX, feature_dropout=0.0).eval()
    inputs, samples = semi_batch()
    weak = inputs['unsup_weak']
    logits = dense_logits(model.student, weak)
    confidence, label = logits.softmax(1).max(1)
    threshold = model.threshold.value = confidence.median().item()
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    losses = model.loss(inputs, samples)
    assert len(drawn) == 2 and not torch.equal(drawn[0].mask, drawn[1].mask)
    plain = model.student.loss(inputs['sup'], samples['sup'])
    torch.testing.assert_close(losses['sup_decode.loss_ce'], 0.5 * plain['decode.loss_ce'])
    strong = 0
    for mixing in drawn:
        view, target, sure = mixing(weak, label, confidence)
        seen = dense_logits(model.student, view)
        strong += masked(seen, target, sure >= threshold, label.numel())
    torch.testing.assert_close(losses['unsup_loss'], 0.5 * 0.25 * strong)
    own = masked(logits, label, confidence >= threshold, label.numel())
    torch.testing.assert_close(losses['unsup_feature_loss'], 0.5 * 0.5 * own)


def test_labels_of_partners_are_those_of_eval_mode_and_own_labels_those_of_the_pass(monkeypatch):
    model = build(mix=MIX, threshold=0.0).train()
    inputs, samples = semi_batch()
    expected = dense_logits(copy.deepcopy(model.student).eval(), inputs['unsup_weak'])
    seen = {}
    mixed = model.mixed_view
    monkeypatch.setattr(
        model, 'mixed_view', lambda *args: seen.update(own=args[2], other=args[3]) or mixed(*args)
    )
    model.loss(inputs, samples)
    confidence, label = expected.softmax(1).max(1)
    assert torch.equal(seen['other'].label, label)
    torch.testing.assert_close(seen['other'].confidence, confidence)
    assert not torch.allclose(seen['own'].confidence, confidence), 'statistics of the batch'
    assert not seen['own'].confidence.requires_grad


def test_a_pixel_from_a_partner_has_the_label_of_the_partner(monkeypatch):
    model = build(mix=MIX).train()
    inputs, samples = semi_batch()
    valid = inputs['unsup_valid']
    others = Targets(torch.full(valid.shape, 3), torch.full(valid.shape, 2.0), valid)
    seen = []
    monkeypatch.setattr(unimatch, 'pseudo_label', lambda *args: others)
    monkeypatch.setattr(
        model, 'mean_consistency', lambda *args: seen.extend(args[1]) or (torch.zeros(()), {})
    )
    model.loss(inputs, samples)
    assert len(seen) == 2
    for label, confidence, _ in seen:
        assert 0 < (confidence == 2).sum() < confidence.numel()
        assert (label[confidence == 2] == 3).all()
        assert not (label[confidence < 2] == 3).all()


def test_a_step_is_three_passes_of_which_one_has_no_gradient():
    model = build(mix=MIX).train()
    inputs, samples = semi_batch()
    seen = []
    model.student.backbone.register_forward_hook(
        lambda module, args, out: seen.append(
            (len(args[0]), module.training, torch.is_grad_enabled())
        )
    )
    model.loss(inputs, samples)
    num_sup, num_unsup = len(inputs['sup']), len(inputs['unsup_weak'])
    assert seen == [
        (num_unsup, False, False),
        (num_sup + num_unsup, True, True),
        (2 * num_unsup, True, True),
    ]
    assert model.student.backbone.bn1.num_batches_tracked == 2
    assert model.network_names == ['student']


@pytest.mark.parametrize('segmentor', [tiny_segmentor(auxiliary=True), tiny_segformer()])
def test_dropped_features_differ_and_reach_the_student(segmentor):
    model = build(
        segmentor, strong=dict(type='mmdmt.StrongAugment'), mix=MIX, threshold=0.0
    ).train()
    losses = model.loss(*semi_batch())
    assert losses['unsup_feature_loss'] > 0 and losses['unsup_loss'] > 0
    assert losses['unsup_keep_ratio'] == 1
    losses['unsup_feature_loss'].backward()
    grads = [parameter.grad for parameter in model.student.decode_head.parameters()]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_without_its_share_dropped_features_are_not_computed():
    model = build(feature_share=0.0).train()
    head = []
    classifier = model.student.decode_head.conv_seg
    classifier.register_forward_hook(lambda *args: head.append(len(args[2])))
    losses = model.loss(*semi_batch(num_labeled=2, num_unlabeled=3))
    assert 'unsup_feature_loss' not in losses
    assert head == [5, 6]


@pytest.mark.parametrize(
    'settings, match',
    [
        (dict(feature_dropout=1.0), 'feature_dropout'),
        (dict(feature_share=1.5), 'feature_share'),
        (dict(feature_drop=0.5), r"no setting \['feature_drop'\].*'feature_dropout'"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises((TypeError, ValueError), match=match):
        build(**settings)
