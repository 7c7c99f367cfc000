"""Losses against slow, independent references, and where they could break."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdmt.models.losses import functional as L

SHAPES = [(5,), (3, 7), (3, 4, 5), (2, 3, 2, 4)]  # (N, *): no, one, two, three spatial dimensions


def batch(shape, num_classes=4, seed=0, ignored=0.2):
    gen = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], num_classes, *shape[1:], generator=gen)
    label = torch.randint(num_classes, shape, generator=gen)
    label[torch.rand(shape, generator=gen) < ignored] = 255
    confidence = torch.rand(shape, generator=gen)
    is_pseudo = torch.arange(shape[0]) % 2 == 0
    return logits, label, confidence, is_pseudo


def pixels(logits, *maps):
    """Yields (sample, logits of a pixel, values of the maps) in plain numpy."""
    logits = logits.movedim(1, -1).double().numpy()
    for position in np.ndindex(logits.shape[:-1]):
        yield position[0], logits[position], [m.numpy()[position] for m in maps]


def softmax(values):
    values = np.exp(values - values.max())
    return values / values.sum()


def reference_mutual(logits, label, confidence, is_pseudo, gamma1, gamma2, conflict):
    """DMT's formula, one pixel at a time."""
    total = weights = count = disagreement = wins = 0
    off = gamma1 == gamma2 == 0
    for sample, values, (target, given) in pixels(logits, label, confidence):
        if target == 255:
            continue
        prob, weight = softmax(values), 1.0
        top = prob.argmax()
        if is_pseudo[sample]:
            student_wins = top != target and given < prob[top]
            disagreement += top != target
            wins += student_wins
            if not off:
                weight = prob[target] ** (gamma1 if top == target else gamma2)
            if student_wins and not off:
                weight = 0.0 if conflict == 'ignore' else (1 - given) ** gamma2
                target = target if conflict == 'ignore' else top
        total += -weight * math.log(prob[target]) if weight else 0.0
        weights += weight
        count += 1
    return total / count, disagreement, wins, weights / count


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('conflict', ['ignore', 'flip'])
@pytest.mark.parametrize('gammas', [(5, 5), (3, 1), (0, 2), (2.5, 0), (0, 0)])
def test_dynamic_mutual_loss_matches_the_formula(shape, conflict, gammas):
    data = batch(shape)
    loss, stats = L.dynamic_mutual_loss(*data, *gammas, conflict=conflict)
    expected = reference_mutual(*data, *gammas, conflict)
    got = loss, stats['disagreement'], stats['student_wins'], stats['mean_weight']
    assert [value.item() for value in got] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('gamma', [0, 5])
def test_dynamic_self_loss_counts_as_the_mutual_loss_does(gamma):
    """Statistics of a method must be comparable with those of another."""
    logits, label, confidence, is_pseudo = batch((3, 4, 5))
    _, expected = L.dynamic_mutual_loss(logits, label, confidence, is_pseudo, 5, 5)
    loss, stats = L.dynamic_self_loss(logits, label, is_pseudo, gamma, confidence=confidence)
    assert expected['disagreement'] > expected['student_wins'] > 0
    for key in ('disagreement', 'student_wins'):
        assert stats[key] == expected[key] and stats[key].is_floating_point()
    without = L.dynamic_self_loss(logits, label, is_pseudo, gamma)
    assert without[0] == loss and 'student_wins' not in without[1]


def test_a_tie_of_confidence_goes_to_the_teacher():
    logits = torch.log(torch.tensor([[0.75, 0.25]]))
    top = logits.softmax(dim=1).max(dim=1).values
    args = logits, torch.tensor([1]), top, torch.tensor([True]), 1, 1
    loss, stats = L.dynamic_mutual_loss(*args)
    assert stats['student_wins'] == 0
    assert loss.item() == pytest.approx(-0.25 * math.log(0.25))
    just_below = torch.nextafter(top, torch.zeros(1))
    loss, stats = L.dynamic_mutual_loss(*args[:2], just_below, *args[3:])
    assert stats['student_wins'] == 1
    assert loss == 0


def test_weights_carry_no_gradient():
    logits, label, confidence, is_pseudo = batch((2, 3, 3))
    logits.requires_grad_()
    confidence.requires_grad_()
    for conflict in L.CONFLICTS:
        loss, _ = L.dynamic_mutual_loss(
            logits, label, confidence, is_pseudo, 2, 2, conflict=conflict
        )
        loss.backward()
    assert confidence.grad is None


def test_gradient_is_the_weighted_cross_entropy_gradient():
    logits, label, confidence, is_pseudo = batch((3, 4, 5))
    logits = logits.double().requires_grad_()
    loss, _ = L.dynamic_mutual_loss(logits, label, confidence, is_pseudo, 3, 2)
    (grad,) = torch.autograd.grad(loss, logits)
    # Gradient with the weights frozen: finite differences of sum(w CE) / n.
    prob = logits.detach().softmax(dim=1)
    valid = label != 255
    target = label.masked_fill(~valid, 0)
    trust = prob.gather(1, target[:, None])[:, 0]
    agrees = prob.argmax(dim=1) == target
    wins = ~agrees & (prob.max(dim=1).values > confidence)
    weight = torch.where(agrees, trust**3, trust**2).masked_fill(wins, 0)
    weight = torch.where(is_pseudo[:, None, None], weight, 1) * valid / valid.sum()
    expected = (prob - F.one_hot(target, 4).movedim(-1, 1)) * weight[:, None]
    torch.testing.assert_close(grad, expected)


def all_losses(logits, label, confidence, is_pseudo):
    """Every pixel loss on one batch: name -> loss."""
    valid = label != 255
    return {
        'mutual': L.dynamic_mutual_loss(logits, label, confidence, is_pseudo, 5, 5)[0],
        'flip': L.dynamic_mutual_loss(logits, label, confidence, is_pseudo, 5, 5, 'flip')[0],
        'mutual_off': L.dynamic_mutual_loss(logits, label, confidence, is_pseudo, 0, 0)[0],
        'self': L.dynamic_self_loss(logits, label, is_pseudo, 5)[0],
        'online': L.online_pseudo_loss(logits, label, is_pseudo, 0.3, valid=valid)[0],
        'share': L.confidence_share_loss(logits, label, confidence, 0.5, per_image=False)[0],
        'share_image': L.confidence_share_loss(logits, label, confidence, 0.5, per_image=True)[0],
        'consistency': L.masked_consistency_loss(logits, label, confidence, 0.5, valid)[0],
        'masked_all': L.masked_cross_entropy(logits, label, confidence, 0.5, valid, 'all')[0],
        'masked_kept': L.masked_cross_entropy(logits, label, confidence, 0.5, valid, 'kept')[0],
        'ohem': L.ohem_cross_entropy(logits, label, 0.2, 3),
    }


@pytest.mark.parametrize('shape', [*SHAPES, (0, 4, 5)])
def test_nothing_to_learn_gives_zero_with_a_gradient(shape):
    logits, label, confidence, is_pseudo = batch(shape)
    logits.requires_grad_()
    for name, loss in all_losses(
        logits, torch.full_like(label, 255), confidence, is_pseudo
    ).items():
        assert loss == 0, name
        (grad,) = torch.autograd.grad(loss, logits)
        assert (grad == 0).all(), name


@pytest.mark.parametrize('pseudo', [False, True])
def test_batches_of_one_kind(pseudo):
    logits, label, confidence, _ = batch((3, 4, 5))
    for name, loss in all_losses(logits, label, confidence, torch.full((3,), pseudo)).items():
        assert loss.isfinite(), name
    if not pseudo:
        expected = F.cross_entropy(logits, label, ignore_index=255)
        losses = all_losses(logits, label, confidence, torch.zeros(3, dtype=torch.bool))
        for name in ('mutual', 'flip', 'mutual_off', 'self'):
            torch.testing.assert_close(losses[name], expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, label, confidence, is_pseudo = batch((3, 4, 5))
    logits = (logits * 500).to(dtype)  # exp() of it overflows, its cross entropy does not
    half, full = logits.clone().requires_grad_(), logits.float().requires_grad_()
    expected = all_losses(full, label, confidence, is_pseudo)
    for name, loss in all_losses(half, label, confidence, is_pseudo).items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, expected[name], msg=name)
        (grad,) = torch.autograd.grad(loss, half)
        assert grad.isfinite().all(), name


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32])
def test_any_integer_label(dtype):
    logits, label, confidence, is_pseudo = batch((3, 4, 5))
    expected = all_losses(logits, label, confidence, is_pseudo)
    got = all_losses(logits, label.to(dtype), confidence, is_pseudo)
    assert got == expected


def test_other_ignore_index():
    logits, label, confidence, is_pseudo = batch((3, 4, 5), ignored=0)
    args = confidence, is_pseudo, 2, 2
    expected = L.dynamic_mutual_loss(logits, label.masked_fill(label == 2, 255), *args)[0]
    assert L.dynamic_mutual_loss(logits, label, *args, ignore_index=2)[0] == expected


def test_gradients_by_finite_differences():
    """Of losses whose weights do not depend on the logits."""
    logits, label, confidence, is_pseudo = batch((2, 3), num_classes=3)
    logits = logits.double().requires_grad_()
    valid = label != 255
    for function in (
        lambda x: L.dynamic_mutual_loss(x, label, confidence, ~is_pseudo & is_pseudo, 5, 5)[0],
        lambda x: L.confidence_share_loss(x, label, confidence, 0.5, per_image=True)[0],
        lambda x: L.confidence_share_loss(x, label, confidence, 0.5, per_image=False)[0],
        lambda x: L.masked_consistency_loss(x, label, confidence, 0.5, valid)[0],
        lambda x: L.masked_cross_entropy(x, label, confidence, 0.5, valid, 'kept')[0],
    ):
        assert torch.autograd.gradcheck(function, logits)


@pytest.mark.parametrize(
    'change',
    [
        dict(label=torch.zeros(3, 4, 4, dtype=torch.long)),
        dict(confidence=torch.zeros(3, 4)),
        dict(is_pseudo=torch.ones(3)),
        dict(is_pseudo=torch.ones(2, dtype=torch.bool)),
        dict(gamma1=-1),
        dict(conflict='drop'),
    ],
)
def test_dynamic_mutual_loss_refuses_bad_input(change):
    names = ('logits', 'label', 'confidence', 'is_pseudo')
    args = dict(zip(names, batch((3, 4, 5))), gamma1=5, gamma2=5)
    with pytest.raises(ValueError, match=next(iter(change))):
        L.dynamic_mutual_loss(**{**args, **change})


def test_online_labels_are_above_the_threshold_and_not_at_it():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.6, 0.4]]))
    threshold = logits[1].softmax(dim=0)[0].item()
    label, pseudo = torch.tensor([255, 255]), torch.tensor([True, True])
    loss, stats = L.online_pseudo_loss(logits, label, pseudo, threshold)
    assert loss == 0
    assert stats['keep_ratio'] == 0
    loss, stats = L.online_pseudo_loss(logits, label, pseudo, threshold - 1e-4)
    assert loss.item() == pytest.approx(-math.log(0.6))
    assert stats['keep_ratio'] == 0.5


def test_online_labels_never_fall_on_padding():
    logits, label, _, is_pseudo = batch((4, 4, 5))
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[:, :, 3:] = False
    expected, _ = L.online_pseudo_loss(logits[..., :3], label[..., :3], is_pseudo, 0.4)
    got, stats = L.online_pseudo_loss(logits, label, is_pseudo, 0.4, valid=valid)
    torch.testing.assert_close(got, expected)
    assert stats['keep_ratio'] <= 1


def reference_share(logits, label, confidence, threshold, per_image):
    losses = np.zeros(label.shape)
    for index, (_, values, (target,)) in enumerate(pixels(logits, label)):
        if target != 255:
            losses.flat[index] = -math.log(softmax(values)[target])
    valid, high = (label != 255).numpy(), (confidence >= threshold).numpy()
    if not per_image:
        return (high & valid).sum() / valid.sum() * losses.sum() / valid.sum()
    total = 0.0
    for loss, v, s in zip(losses, valid, high):
        total += (s & v).sum() / max(1, v.sum()) * loss.sum()
    return total / (losses > 0).sum()


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('per_image', [False, True])
def test_confidence_share_loss_matches_the_formula(shape, per_image):
    logits, label, confidence, _ = batch(shape)
    loss, _ = L.confidence_share_loss(logits, label, confidence, 0.5, per_image=per_image)
    expected = reference_share(logits, label, confidence, 0.5, per_image)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_share_loss_averages_over_pixels_with_positive_cross_entropy():
    """The published normalizer: fitted pixels leave it, pixels of weight 0 stay in it."""
    fitted = torch.tensor([200.0, 0.0])
    even = torch.zeros(2)
    logits = torch.stack([torch.stack([fitted, even], 1), torch.stack([even, even], 1)])
    label = torch.zeros(2, 2, dtype=torch.long)
    confidence = torch.tensor([[0.95, 0.0], [0.0, 0.0]])  # shares 1/2 and 0; a tie counts
    loss, stats = L.confidence_share_loss(logits, label, confidence, 0.95, per_image=True)
    assert loss.item() == pytest.approx(0.5 * math.log(2) / 3)
    assert stats['confident_share'] == 0.25
    loss, _ = L.confidence_share_loss(logits, label, confidence, 0.95, per_image=False)
    assert loss.item() == pytest.approx(0.25 * 3 * math.log(2) / 4)


def test_masked_consistency_counts_all_valid_pixels_but_learns_confident_ones():
    logits, label, _, _ = batch((2, 4, 5), ignored=0)
    confidence = torch.zeros(2, 4, 5)
    confidence[0, 0, :2] = torch.tensor([0.95, 0.96])
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0, 0, 1] = False
    valid[1] = False
    label[1] = 255  # labels of padded pixels are not read
    loss, stats = L.masked_consistency_loss(logits, label, confidence, 0.95, valid)
    expected = F.cross_entropy(logits[:1, :, 0, 0], label[:1, 0, 0]) / 19
    torch.testing.assert_close(loss, expected)
    assert stats['keep_ratio'].item() == pytest.approx(1 / 19)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('threshold', [0.5, torch.tensor(0.5)])
def test_masked_cross_entropy_is_divided_by_what_is_asked_for(shape, threshold):
    logits, label, confidence, _ = batch(shape, ignored=0)
    valid = torch.ones(shape, dtype=torch.bool)
    valid.view(-1)[::3] = False
    total = num_valid = num_kept = 0
    for _, values, (target, confident, inside) in pixels(logits, label, confidence, valid):
        num_valid += inside
        if inside and confident >= 0.5:
            num_kept += 1
            total -= math.log(softmax(values)[target])
    assert 0 < num_kept < num_valid < label.numel()
    # U2PL: mean over kept pixels, times the number of all pixels over that of kept ones
    weighted = total / num_kept * (label.numel() / num_kept)
    expected = dict(valid=total / num_valid, all=total / label.numel(), kept=weighted)
    assert set(expected) == set(L.NORMALIZERS)
    for normalizer, value in expected.items():
        loss, stats = L.masked_cross_entropy(
            logits, label, confidence, threshold, valid, normalizer
        )
        assert loss.item() == pytest.approx(value, rel=1e-5), normalizer
        assert stats['keep_ratio'].item() == pytest.approx(num_kept / num_valid)


def test_masked_cross_entropy_refuses_an_unknown_normalizer():
    logits, label, confidence, _ = batch((2, 3))
    with pytest.raises(ValueError, match=r"`normalizer` must be one of .* got 'some'"):
        L.masked_cross_entropy(logits, label, confidence, 0.5, label != 255, 'some')


@pytest.mark.parametrize(('thresh', 'min_kept'), [(0.3, 4), (0.01, 7), (0.01, 0), (0.3, 10**6)])
def test_ohem_learns_hard_pixels_alone(thresh, min_kept):
    logits, label, _, _ = batch((3, 4, 5))
    found = [
        (softmax(values)[target], -math.log(softmax(values)[target]))
        for _, values, (target,) in pixels(logits, label)
        if target != 255
    ]
    found.sort()
    kept = [ce for index, (p, ce) in enumerate(found) if p <= thresh or index < min_kept]
    loss = L.ohem_cross_entropy(logits, label, thresh, min_kept)
    assert loss.item() == pytest.approx(np.mean(kept) if kept else 0, rel=1e-5)


def test_sigmoid_ramp():
    assert L.sigmoid_ramp(0, 100) == 1  # as published
    assert L.sigmoid_ramp(1, 100) == pytest.approx(math.exp(-5 * 0.98**2))
    assert L.sigmoid_ramp(49, 100) == pytest.approx(math.exp(-5 * 0.25))
    assert L.sigmoid_ramp(99, 100) == 1
    assert L.sigmoid_ramp(1000, 100) == 1
    for step, total in ((-1, 10), (0, 0)):
        with pytest.raises(ValueError, match='total'):
            L.sigmoid_ramp(step, total)


def test_mixup_weights_match_the_pixel_loss_and_the_gamma_zero_rule():
    logits, _, _, is_pseudo = batch((6,))
    soft_label = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    confidence, label = soft_label.max(dim=1)
    weights, stats = L.mixup_weights(logits, soft_label, is_pseudo, 3, 2)
    _, expected = L.dynamic_mutual_loss(logits, label, confidence, is_pseudo, 3, 2)
    assert {key: value.item() for key, value in stats.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}
    )
    assert weights.mean().item() == pytest.approx(expected['mean_weight'].item())
    assert (weights[~is_pseudo] == 1).all()
    weights, stats = L.mixup_weights(logits, soft_label, is_pseudo, 0, 0)
    assert (weights == 1).all()


def test_losses_never_wait_for_the_device():
    """On the meta device there are no values, so reading one back raises."""
    args = [t.to('meta') for t in batch((3, 4, 5))]
    args[0].requires_grad_()
    for loss in all_losses(*args).values():
        loss.backward(retain_graph=True)
