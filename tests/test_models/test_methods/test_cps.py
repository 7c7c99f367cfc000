"""Cross Pseudo Supervision, and what a method without teachers needs of the base."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import dense_logits, pseudo_label
from mmdmt.models.methods import CPS
from mmdmt.models.modes import in_mode
from mmdmt.models.pair import PEERS
from mmdmt.models.thresholds import build_threshold

KEY = 'decode_head.conv_seg.weight'


def build(**settings):
    torch.manual_seed(0)
    model = CPS(tiny_segmentor(dropout=0), **settings)
    model.start_run(max_iters=10)
    return model


MIX = dict(type='mmdmt.CutMix', prob=1.0, boxes='french')


def test_without_mixing_each_learns_the_labels_of_the_other_on_all_images():
    model = build(unsup_weight=1.5).eval()
    inputs, samples = semi_batch()
    images = torch.cat([inputs['sup'], inputs['unsup_weak']])
    losses = model.loss(inputs, samples)
    logits = {side: dense_logits(model.network(f'student_{side}'), images) for side in PEERS}
    assert not torch.equal(*[each.argmax(1) for each in logits.values()])
    for side, peer in PEERS.items():
        expected = 1.5 * F.cross_entropy(logits[side], logits[peer].argmax(1))
        torch.testing.assert_close(losses[f'unsup_{side}_loss'], expected)
        assert losses[f'unsup_{side}_keep_ratio'] == 1


@pytest.mark.parametrize('quantile', [None, 0.5])
def test_with_mixing_images_and_labels_of_the_unlabeled_ones_are_mixed_alike(monkeypatch, quantile):
    """And their confidence, where a threshold asks for it."""
    model = build(mix=MIX).eval()
    inputs, samples = semi_batch()
    weak = inputs['unsup_weak']
    found = {side: dense_logits(model.network(f'student_{side}'), weak) for side in PEERS}
    found = {side: each.detach().softmax(1).max(1) for side, each in found.items()}
    threshold = 0.0
    if quantile:
        threshold = torch.cat([trust for trust, _ in found.values()]).quantile(quantile).item()
        model.threshold = build_threshold(threshold)
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    losses = model.loss(inputs, samples)
    (mixing,) = drawn
    assert 0 < mixing.mask.float().mean() < 1
    (view,) = mixing(weak)
    for side, peer in PEERS.items():
        trust, labels = mixing(*found[peer])
        logits = dense_logits(model.network(f'student_{side}'), view)
        expected = (F.cross_entropy(logits, labels, reduction='none') * (trust >= threshold)).mean()
        torch.testing.assert_close(losses[f'unsup_{side}_loss'], expected)


def test_padding_of_labeled_images_is_not_learned():
    model = build().eval()
    inputs, samples = semi_batch()
    expected = model.loss(inputs, samples)
    for sample in samples['sup']:
        sample.set_metainfo(dict(padding_size=(0, 32, 0, 0)))
    found = model.loss(inputs, samples)
    images = inputs['unsup_weak']
    for side, peer in PEERS.items():
        key = f'unsup_{side}_loss'
        logits = [dense_logits(model.network(f'student_{each}'), images) for each in (side, peer)]
        own = F.cross_entropy(logits[0], logits[1].argmax(1))
        torch.testing.assert_close(found[key], own)
        assert not torch.isclose(found[key], expected[key])


@pytest.mark.parametrize('mix', [None, MIX])
def test_labels_in_a_step_come_from_train_mode_and_move_no_statistics(mix):
    model = build(mix=mix).train()
    inputs, samples = semi_batch()
    seen = {}
    for side in PEERS:
        backbone = model.network(f'student_{side}').backbone
        seen[side] = []
        backbone.register_forward_hook(
            lambda module, args, out, side=side: seen[side].append(
                (len(args[0]), module.training, torch.is_grad_enabled())
            )
        )
    model.loss(inputs, samples)
    trained = (len(inputs['sup']) + len(inputs['unsup_weak']), True, True)
    labeled = (len(inputs['unsup_weak']), True, False)
    for side in PEERS:
        assert seen[side] == ([labeled, trained] if mix else [trained])
        assert model.network(f'student_{side}').backbone.bn1.num_batches_tracked == 1


def test_two_networks_of_different_kinds():
    pair = dict(l=tiny_segmentor(), r=tiny_segformer())
    model = CPS(pair, mix=MIX).train()
    losses = model.loss(*semi_batch())
    assert losses['unsup_l_loss'] > 0 and losses['unsup_r_loss'] > 0
    with pytest.raises(ValueError, match=r"or dict\(l=..., r=...\).*got the keys \['l'\]"):
        CPS(dict(l=tiny_segmentor()))


def test_a_step_reaches_each_student_through_its_own_loss_alone():
    model = build().train()
    losses = model(*semi_batch(), mode='loss')
    for side, peer in PEERS.items():
        own = [
            v
            for k, v in losses.items()
            if 'loss' in k and k.split('.')[0].endswith((f'sup_{side}', f'sup_{side}_loss'))
        ]
        assert len(own) == 2
        model.zero_grad()
        sum(own).backward(retain_graph=True)
        assert all(p.grad is not None for p in model.network(f'student_{side}').parameters())
        assert all(p.grad is None for p in model.network(f'student_{peer}').parameters())


def test_an_optimizer_step_moves_both_students():
    model = build().train()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total, _ = model.parse_losses(model(*semi_batch(), mode='loss'))
    total.backward()
    optimizer.step()
    model.after_step()
    for name in ('student_l', 'student_r'):
        new, old = (part.network(name).state_dict()[KEY] for part in (model, before))
        assert not torch.equal(new, old)
    assert model.step == 1 and model.teacher_names == []


def test_labeling_in_train_mode_leaves_the_statistics_alone():
    model = build(sup_weight=0.0).train()
    inputs, samples = semi_batch()
    student = model.student_l
    before = copy.deepcopy(student.state_dict())
    with in_mode(student, training=True):
        labeled = pseudo_label(student, inputs['unsup_weak'], inputs['unsup_valid'])
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    with in_mode(student, training=False):
        other = pseudo_label(student, inputs['unsup_weak'], inputs['unsup_valid'])
    assert not torch.equal(labeled.confidence, other.confidence), 'batch statistics were not used'
    # In a step they move once, by the pass that trains.
    model.loss(inputs, samples)
    assert student.backbone.bn1.num_batches_tracked == 1


def test_a_batch_of_labeled_images_trains_both():
    model = build().train()
    inputs, samples = semi_batch()
    losses = model.loss(dict(sup=inputs['sup']), samples)
    assert {key.split('.')[0] for key in losses} == {'sup_l', 'sup_r'}


def test_either_student_predicts_or_both_together():
    model = build().eval()
    image = torch.randn(1, 3, 32, 32)
    assert model.predict_on == 'student_l'
    probs = []
    for name in ('student_l', 'student_r'):
        with model.predicting_on(name):
            assert torch.equal(model(image), model.network(name)(image))
            probs.append(dense_logits(model, image).softmax(1))
    with model.predicting_on('average'):
        torch.testing.assert_close(dense_logits(model, image).softmax(1), sum(probs) / 2)
    with pytest.raises(ValueError, match=r"'teacher_average', but CPS has the networks"):
        build(predict_on='teacher_average')


def test_the_ramp_goes_on_after_resuming():
    model = build(rampup_iters=4)
    for _ in range(3):
        model.after_step()
    other = build(rampup_iters=4)
    other.load_state_dict(model.state_dict())
    assert other.step == 3 and other.unsup_scale() == 0.75
    inputs, samples = semi_batch()
    expected = model.eval().loss(inputs, samples)
    for key, value in other.eval().loss(inputs, samples).items():
        assert torch.equal(value, expected[key]), key


def test_a_plain_checkpoint_starts_both_students():
    model = build()
    model.after_step()
    plain = {k: torch.randn(v.shape).to(v) for k, v in model.student_l.state_dict().items()}
    model.load_state_dict(dict(plain))
    for name in model.network_names:
        assert torch.equal(model.network(name).state_dict()[KEY], plain[KEY])
    assert model.step == 0


def test_one_plain_checkpoint_for_both_students_is_warned_of():
    plain = build().student_l.state_dict()
    with pytest.warns(UserWarning, match=r"\['student_l', 'student_r'\] start from the same"):
        build().load_state_dict(plain)
