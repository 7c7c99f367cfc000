import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.checkpoint import get_state_dict
from tiny_models import semi_batch, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import AugSeg, FixMatch, MeanTeacher, UniMatch, UniMatchV2
from mmdmt.models.methods.base import build_segmentor
from mmdmt.models.previous import PreviousStudents

MIX = dict(type='mmdmt.CutMix', prob=1.0, area=(0.2, 0.4))
METHODS = (FixMatch, UniMatch, UniMatchV2)


def students(count, segmentor=None):
    """Different networks of the same architecture, in training mode."""
    torch.manual_seed(0)
    cfg = segmentor or tiny_segmentor()
    networks = [build_segmentor({k: v for k, v in cfg.items() if k != 'data_preprocessor'})]
    for _ in range(count - 1):
        other = copy.deepcopy(networks[-1])
        with torch.no_grad():
            for value in other.state_dict().values():
                if value.is_floating_point():
                    value.mul_(1 + 0.3 * torch.rand_like(value))
        networks.append(other)
    return [network.train() for network in networks]


def advance(model, steps):
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
    logged = []
    for _ in range(steps):
        torch.manual_seed(model.step)
        losses = model.loss(*semi_batch())
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        optimizer.step()
        model.after_step()
        logged.append(losses)
    return logged


# ------------------------------------------------------------------------------------ the copies


@pytest.mark.parametrize('segmentor', [tiny_segmentor(auxiliary=True), tiny_segformer()])
@pytest.mark.parametrize('device', ['cpu', 'model'])
def test_labels_are_those_of_the_weighted_sum_of_logits_in_eval_mode(segmentor, device):
    networks = students(4, segmentor)
    previous = PreviousStudents(device=device, max_labelers=2)
    for network in networks[:3]:
        previous.take(network)
    current = networks[3]
    before = copy.deepcopy(current.state_dict())
    inputs, _ = semi_batch()
    weak, valid = inputs['unsup_weak'], inputs['unsup_valid']
    counts = set()
    for step in range(6):
        chosen, weights = previous.draw(step)
        counts.add(len(chosen))
        expected = sum(
            weight * dense_logits(copy.deepcopy(networks[index]).eval(), weak)
            for index, weight in zip(chosen, weights)
        )
        confidence, label = expected.softmax(1).max(1)
        found = previous.label(current, weak, valid, step)
        assert torch.equal(found.label, label) and torch.equal(found.valid, valid)
        torch.testing.assert_close(found.confidence, confidence)
        assert not found.confidence.requires_grad
    assert counts == {1, 2}
    assert all(module.training for module in current.modules())
    for key, value in current.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_oldest_copy_goes_first():
    networks = students(5)
    previous = PreviousStudents(keep=3)
    assert not previous
    for count, network in enumerate(networks, 1):
        previous.take(network)
        assert len(previous) == min(count, 3)
    expected = PreviousStudents(keep=3)
    for network in networks[2:]:
        expected.take(network)
    assert torch.equal(previous.copies, expected.copies)
    assert previous.copies.device.type == 'cpu' and not previous.copies.requires_grad


def test_draws_depend_on_the_step_alone_and_weights_are_flat():
    previous = PreviousStudents(max_labelers=3)
    previous.copies = torch.zeros(8, 1)
    torch.manual_seed(0)
    first = previous.draw(7)
    torch.manual_seed(1)
    assert previous.draw(7) == first
    drawn = [previous.draw(step) for step in range(3000)]
    counts = torch.bincount(torch.tensor([len(chosen) for chosen, _ in drawn]))
    assert counts[0] == 0 and ((counts[1:] - 1000).abs() < 120).all()
    assert all(len(set(chosen)) == len(chosen) for chosen, _ in drawn)
    assert {index for chosen, _ in drawn for index in chosen} == set(range(8))
    assert all(sum(weights) == pytest.approx(1) for _, weights in drawn)
    pairs = torch.tensor([weights[0] for _, weights in drawn if len(weights) == 2])
    # Of two weights each is uniform.
    assert pairs.mean().item() == pytest.approx(1 / 2, abs=0.03)
    assert pairs.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_copies_are_taken_after_a_number_of_iterations_or_a_pass():
    previous = PreviousStudents(every=3, skip=4)
    assert [step for step in range(1, 13) if previous.is_due(step, [])] == [6, 9, 12]
    previous = PreviousStudents()
    assert [step for step in range(1, 13) if previous.is_due(step, [2, 5])] == [5, 10]
    with pytest.raises(ValueError, match='no passes: give a number of iterations'):
        previous.is_due(1, [])


def test_or_where_a_validation_is_the_best():
    previous = PreviousStudents(every='best', skip=2, metric='student/mIoU')
    metrics = [0.9, 0.3, 0.2, 0.3, float('nan'), 0.5]
    found = [previous.is_best(step, {'student/mIoU': v}) for step, v in enumerate(metrics, 1)]
    assert found == [False, True, False, False, False, True]
    assert not any(previous.is_due(step, [2, 2]) for step in range(10))
    with pytest.raises(ValueError, match=r"'student/mIoU'.*\['mIoU'\]"):
        previous.is_best(9, dict(mIoU=1.0))
    assert not PreviousStudents(every=2).is_best(9, {})


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(every=0), 'every'),
        (dict(every='pass'), 'every'),
        (dict(keep=0), 'keep'),
        (dict(max_labelers=0), 'max_labelers'),
        (dict(threshold=1.5), 'threshold'),
        (dict(device='cuda'), 'device'),
        (dict(number=3), r"unknown keys \['number'\]"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        FixMatch(tiny_segmentor(), previous=settings)


# ----------------------------------------------------------------------------------- the methods


def build(method, segmentor=None, **settings):
    torch.manual_seed(0)
    settings = dict(dict(previous=dict(every=2, threshold=0.3)), **settings)
    model = method(segmentor or tiny_segmentor(dropout=0), mix=MIX, threshold=0.3, **settings)
    model.start_run(10, [2, 3])
    return model.train()


@pytest.mark.parametrize('method', METHODS)
def test_without_copies_a_method_is_what_it_was(method):
    plain, model = build(method, previous=None), build(method)
    for found, expected in zip(advance(model, 2), advance(plain, 2)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert len(model.previous) == 1
    assert 'previous_loss' in advance(model, 1)[0]


def masked(logits, label, kept, count):
    cross_entropy = F.cross_entropy(logits, label, reduction='none')
    return (cross_entropy * kept).sum() / count


def test_the_loss_is_that_of_the_paper(monkeypatch):
    """(L_x + L_std + share * L_prev) / (2 + share), the same mixing for both kinds of labels."""
    model = build(UniMatch, feature_dropout=0.0).eval()
    for network in students(2):
        model.previous.take(network)
    model.step = 4
    share = 0.8  # at 4 of 10 iterations
    inputs, samples = semi_batch()
    weak = inputs['unsup_weak']
    own = dense_logits(model.student, weak)
    earlier = model.previous.label(model.student, weak, inputs['unsup_valid'], 4)
    sure = model.previous.threshold = earlier.confidence.median().item()
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    losses = model.loss(inputs, samples)
    supervised = model.student.loss(inputs['sup'], samples['sup'])['decode.loss_ce']
    confidence, label = own.softmax(1).max(1)
    totals = []
    for taught, trust, threshold in (
        (label, confidence, 0.3),
        (earlier.label, earlier.confidence, sure),
    ):
        total = 0.5 * masked(own, taught, trust >= threshold, label.numel())
        for mixing in drawn:
            view, target, mixed = mixing(weak, taught, trust)
            logits = dense_logits(model.student, view)
            total += 0.25 * masked(logits, target, mixed >= threshold, label.numel())
        totals.append(total)
    torch.testing.assert_close(losses['sup_decode.loss_ce'], supervised / (2 + share))
    standard = losses['unsup_loss'] + losses['unsup_feature_loss']
    torch.testing.assert_close(standard, totals[0] / (2 + share))
    torch.testing.assert_close(losses['previous_loss'], share * totals[1] / (2 + share))


@pytest.mark.parametrize(('method', 'views'), [(FixMatch, 1), (UniMatchV2, 2)])
def test_other_methods_learn_the_mean_over_their_views(method, views, monkeypatch):
    settings = dict(clean_share=1.0) if method is UniMatchV2 else {}
    model = build(method, **settings).eval()
    model.previous.take(students(1)[0])
    model.step = 5
    inputs, samples = semi_batch()
    weak = inputs['unsup_weak']
    earlier = model.previous.label(model.student, weak, inputs['unsup_valid'], 5)
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    losses = model.loss(inputs, samples)
    assert len(drawn) == views
    expected = 0
    for mixing in drawn:
        view, target, trust = mixing(weak, earlier.label, earlier.confidence)
        logits = dense_logits(model.student, view)
        expected += masked(logits, target, trust >= 0.3, target.numel()) / views
    torch.testing.assert_close(losses['previous_loss'], expected / 3)


def test_the_weight_rises_to_the_middle_of_the_run_and_falls():
    model = build(FixMatch)
    found = []
    for _ in range(10):
        found.append(model.previous_share())
        model.after_step()
    assert found == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize('method', METHODS)
def test_a_resumed_run_goes_on_alike_with_any_number_of_copies(method):
    whole = build(method, tiny_segmentor())
    for start in (1, 5):
        advance(whole, start - whole.step)
        saved = copy.deepcopy(get_state_dict(whole))  # as mmengine saves it
        assert len(saved['previous.copies']) == start // 2
        other = build(method, tiny_segmentor())
        missing, unexpected = other.load_state_dict(saved)
        assert not missing and not unexpected and other.step == start
        expected = copy.deepcopy(whole)
        advance(expected, 3)
        advance(other, 3)
        for key, value in expected.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
        assert torch.equal(expected.previous.copies, other.previous.copies)


def test_the_best_of_the_validations_is_resumed_and_taken():
    model = build(FixMatch, previous=dict(every='best'))
    assert model.state_dict()['previous.best'].isfinite().all()
    model.after_validation(dict(mIoU=40.0))
    assert len(model.previous) == 1
    other = build(FixMatch, previous=dict(every='best'))
    other.load_state_dict(model.state_dict())
    other.after_validation(dict(mIoU=39.0))
    assert len(other.previous) == 1
    other.after_validation(dict(mIoU=41.0))
    assert len(other.previous) == 2
    plain = build(FixMatch, previous=None)
    plain.after_validation(dict(mIoU=1.0))


def test_copies_are_no_networks_parameters_or_buffers():
    model = build(FixMatch)
    model.previous.take(model.student)
    assert model.network_names == ['student']
    assert not list(model.previous.parameters()) and not list(model.previous.buffers())
    fresh = build(FixMatch)
    missing, unexpected = fresh.load_state_dict(model.student.state_dict())
    assert not missing and not unexpected and len(fresh.previous) == 0


def test_half_precision_passes_give_float32_losses():
    model = build(UniMatch)
    model.previous.take(model.student)
    model.step = 5
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*semi_batch())
    assert losses['previous_loss'].dtype == torch.float32
    assert losses['previous_loss'] > 0 and losses['previous_loss'].isfinite()


@pytest.mark.parametrize('method', [AugSeg, MeanTeacher])
def test_methods_that_cannot_use_them_say_so(method):
    with pytest.raises(ValueError, match=f'{method.__name__} cannot use `previous`'):
        method(tiny_segmentor(), previous={})
