"""The contrast of U2PL against plain loops, and its queues."""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from virtual_gpu import NoWaiting

from mmdmt.checks import build_part
from mmdmt.models.losses.contrast import memory_bank
from mmdmt.models.losses.contrast.memory_bank import ClassQueue
from mmdmt.models.losses.contrast.unreliable_contrast import (
    Pixels,
    UnreliableContrast,
    negative_pixels,
    random_windows,
)

CHANNELS, SIZE = 5, (4, 6)
#: More than there are pixels: nothing is left to chance.
ALL = dict(anchors_per_class=200, queue_size=200, keys_per_class=200, negatives=7)


def build(classes=6, **settings):
    torch.manual_seed(0)
    student = nn.Module()
    student.out_channels, student.decode_head = classes, nn.Module()
    student.decode_head.conv_seg = nn.Conv2d(CHANNELS, classes, 1)
    settings = dict(ALL, projection=dict(channels=4), **settings)
    return UnreliableContrast(student, **settings)


def taps(classes=6, seed=1, labeled=2, unlabeled=3):
    """Maps of student and teacher."""
    gen = torch.Generator().manual_seed(seed)
    count = labeled + unlabeled
    feats = [torch.randn(count, CHANNELS, *SIZE, generator=gen) for _ in range(2)]
    logits = 4 * torch.randn(count, classes, *SIZE, generator=gen)
    student = SimpleNamespace(features=feats[0].requires_grad_())
    return student, SimpleNamespace(features=feats[1], logits=logits)


def pixels(present=range(6), seed=2, labeled=2, unlabeled=3):
    """Twice as large as the features."""
    gen = torch.Generator().manual_seed(seed)
    present = torch.tensor(list(present))
    sup, label = (
        present[torch.randint(0, len(present), (number, *SIZE), generator=gen)]
        for number in (labeled, unlabeled)
    )
    sup[0, 0, :3] = 255
    entropy = torch.rand(unlabeled, *SIZE, generator=gen)
    maps = sup, label, entropy < 0.4, entropy > 0.6
    return Pixels(*(each.repeat_interleave(2, 1).repeat_interleave(2, 2) for each in maps))


def first_rows(module):
    """Negatives that are known: the queue of the class from its start, again and again."""
    queue, number = module.queue, torch.arange(module.negatives)

    def draw(_):
        index = number % queue.filled[:, None].clamp(min=1)
        return queue.feats[torch.arange(len(index))[:, None], index]

    return draw


def unit(row):
    return row / np.linalg.norm(row)


def reference(module, student, teacher, known, low, high, labeled=True):
    """The published loss in plain loops: mean over classes; and the negatives of each class."""
    own, keys = (
        head(tap.features.movedim(1, 3)).detach().double().numpy()
        for head, tap in ((module.student, student), (module.teacher, teacher))
    )
    prob = teacher.logits.softmax(1).double().numpy()
    sup, label, certain, uncertain = (each[:, ::2, ::2].numpy() for each in known)
    losses, negatives = [], {}
    for cls in range(prob.shape[1]):
        anchors, positives, queue = [], [], []
        for n, y, x in np.ndindex(*prob.shape[:1], *SIZE):
            rank = int((prob[n, :, y, x] > prob[n, cls, y, x]).sum())
            if n < len(sup):
                is_anchor = sup[n, y, x] == cls
                is_negative = labeled and rank < low and sup[n, y, x] not in (cls, 255)
            else:
                m = n - len(sup)
                is_anchor = label[m, y, x] == cls and certain[m, y, x]
                is_negative = uncertain[m, y, x] and low <= rank < high
            if is_anchor:
                positives.append(keys[n, y, x])
                if prob[n, cls, y, x] > 0.3:
                    anchors.append(unit(own[n, y, x]))
            if is_negative:
                queue.append(unit(keys[n, y, x]))
        negatives[cls] = queue
        if anchors and queue:
            positive = unit(np.mean(positives, axis=0))
            drawn = [queue[index % len(queue)] for index in range(module.negatives)]
            each = []
            for anchor in anchors:
                down = sum(math.exp(anchor @ other / 0.5) for other in drawn)
                up = math.exp(anchor @ positive / 0.5)
                each.append(-math.log(up / (up + down)))
            losses.append(np.mean(each))
    return np.mean(losses), negatives


@pytest.mark.parametrize(
    ('classes', 'present', 'ranks', 'labeled'),
    [
        (6, range(6), (3, 6), True),
        (6, (2, 5), (3, 6), True),  # every list by class id, not by the place among those present
        (6, range(6), (3, 6), False),
        (24, (1, 8, 20), (3, 20), True),
        (4, range(4), (2, 4), True),
        (3, range(3), (1, 3), True),
        (2, range(2), (1, 2), True),
    ],
)
def test_the_loss_is_the_formula(classes, present, ranks, labeled):
    module = build(classes, weight=3.0, labeled_negatives=labeled)
    module.queue.draw = first_rows(module)
    (student, teacher), known = taps(classes), pixels(present)
    expected, negatives = reference(module, student, teacher, known, *ranks, labeled)
    assert expected > 0
    found = module(student, teacher, known)
    assert found['contrast_loss'].item() == pytest.approx(3 * expected, rel=2e-3)
    for cls, rows in negatives.items():
        assert module.queue.total[cls] == len(rows)
        if rows:
            held = module.queue.feats[cls, : len(rows)].float().numpy()
            np.testing.assert_allclose(held, rows, atol=1e-3)
    found['contrast_loss'].backward()
    assert student.features.grad.abs().sum() > 0
    assert all(each.grad.abs().sum() > 0 for each in module.student.parameters())
    assert all(each.grad is None for each in module.teacher.parameters())


def test_classes_that_are_absent_have_no_anchors_and_the_others_their_own_queues():
    """With a place among the present classes as index, class 5 would be told from queue 1."""
    module = build()
    (student, teacher), known = taps(), pixels(present=(2, 5))
    with torch.no_grad():
        found = module(student, teacher, known)
        assert found['contrast_classes'] == 2
        module.queue.draw = first_rows(module)
        module.queue.remember = lambda *args: None
        before = module(student, teacher, known)['contrast_loss']
        for other in (0, 1, 3, 4):
            module.queue.feats[other].fill_(0.5)
        same = module(student, teacher, known)['contrast_loss']
        torch.testing.assert_close(same, before)
        module.queue.feats[5].fill_(0.5)
        changed = module(student, teacher, known)['contrast_loss']
        assert (changed - before).abs() > 0.01


def test_labeled_pixels_are_negatives_of_the_likely_classes_that_are_not_theirs():
    """The released code asks for pixels that are c and are not c."""
    logits = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).reshape(1, 5, 1, 1).expand(1, 5, 1, 3)
    truth = torch.tensor([[[1, 4, 255]]])
    none = torch.zeros(0, 1, 3)
    known = Pixels(truth, none.long(), none.bool(), none.bool())
    found = negative_pixels(logits, known, (3, 5))
    assert found[0, :, 0].T.int().tolist() == [[1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0] * 5]
    assert not negative_pixels(logits, known, (3, 5), labeled=False).any()


def test_uncertain_pixels_are_negatives_of_the_classes_in_the_window():
    logits = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).reshape(1, 5, 1, 1).expand(1, 5, 1, 2)
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    uncertain = torch.tensor([[[True, False]]])
    known = Pixels(torch.zeros(0, 1, 2).long(), label, ~uncertain, uncertain)
    found = negative_pixels(logits, known, (1, 4))
    assert found[0, :, 0].T.int().tolist() == [[0, 1, 1, 1, 0], [0] * 5]


@pytest.mark.parametrize(
    ('classes', 'settings', 'expected'),
    [
        (21, {}, (3, 20)),
        (19, {}, (3, 19)),
        (5, {}, (3, 5)),
        (4, {}, (2, 4)),
        (3, {}, (1, 3)),
        (2, {}, (1, 2)),
        (21, dict(low_rank=1, high_rank=2), (1, 2)),
    ],
)
def test_the_window_of_ranks_fits_the_classes(classes, settings, expected):
    assert build(classes, **settings).ranks == expected


def test_nothing_is_negative_at_first():
    module = build()
    (student, teacher), known = taps(), pixels()
    known = known._replace(uncertain=known.uncertain & False, sup_label=known.sup_label * 0 + 255)
    found = module(student, teacher, known)
    found['contrast_loss'].backward()
    assert found['contrast_loss'] == 0 == found['contrast_classes']
    assert (student.features.grad == 0).all()
    assert all((each.grad == 0).all() for each in module.student.parameters())


def test_an_idle_step_gives_every_parameter_a_gradient_of_zero():
    module = build()
    loss = module.idle()['contrast_loss']
    loss.backward()
    assert loss == 0 and all((each.grad == 0).all() for each in module.student.parameters())


def test_other_ranks_give_keys_and_do_not_scale_the_gradient(monkeypatch):
    grads, totals = [], []
    for ranks in (1, 2):
        monkeypatch.setattr(memory_bank, 'all_gather', lambda rows, n=ranks: [rows] * n)
        module = build()
        module.queue.draw = first_rows(module)
        (student, teacher), known = taps(), pixels()
        module(student, teacher, known)['contrast_loss'].backward()
        grads.append(student.features.grad)
        totals.append(module.queue.total)
    assert torch.equal(totals[1], 2 * totals[0])
    torch.testing.assert_close(*grads, rtol=0.3, atol=1e-3)
    assert grads[1].norm() / grads[0].norm() == pytest.approx(1, abs=0.1)


def test_half_precision_gives_float32():
    module = build()
    student, teacher = taps()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        tap = SimpleNamespace(
            features=teacher.features.bfloat16(), logits=teacher.logits.bfloat16()
        )
        mine = SimpleNamespace(features=student.features.bfloat16())
        loss = module(mine, tap, pixels())['contrast_loss']
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert torch.isfinite(student.features.grad).all()


def test_every_anchor_has_negatives_of_its_own():
    torch.manual_seed(0)
    found = random_windows((2, 400), 20, 5, 'cpu')
    assert found.shape == (2, 400, 20) and (found.sum(2) == 5).all()
    assert len({tuple(row.int().tolist()) for row in found[0]}) == 20
    assert (found.float().mean((0, 1)) - 0.25).abs().max() < 0.05
    assert random_windows((1, 3), 4, 9, 'cpu').all()


def test_the_cost_does_not_grow_with_the_images():
    module = build(anchors_per_class=8, keys_per_class=5)
    student, teacher = taps()
    found = module(student, teacher, pixels())
    assert module.queue.total.tolist() == [5] * 6
    assert found['contrast_filled'] == pytest.approx(5 / 200)


def test_nothing_waits_for_the_device():
    module = build()
    student, teacher = taps()
    known = pixels()
    with NoWaiting():
        module(student, teacher, known)['contrast_loss'].backward()


def test_paper_values_are_the_defaults():
    parameters = inspect.signature(UnreliableContrast).parameters
    expected = dict(
        weight=0.1, temperature=0.5, anchors_per_class=256, negatives=50, anchor_prob=0.3
    )
    expected.update(low_rank=3, high_rank=20)
    assert {name: parameters[name].default for name in expected} == expected


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(weight=-1), r'`contrast\.weight` must be in \[0, inf\], got -1'),
        (dict(temperature=0), r'`contrast\.temperature` must be in'),
        (dict(anchor_prob=2), r'`contrast\.anchor_prob` must be in \[0, 1\], got 2'),
        (dict(low_rank=0), r'`contrast\.low_rank` must be an integer of at least 1, got 0'),
        (dict(low_rank=3, high_rank=3), r'`contrast\.high_rank` must be .* at least 4, got 3'),
        (dict(classifier='decode_head.x'), 'has no such module'),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        build(**settings)


def test_misspelled_settings_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"`contrast` has unknown keys \['wieght'\] .*'weight'"):
        build_part('contrast', UnreliableContrast, dict(wieght=1), None)


# --------------------------------------------------------------------------------------- queues


def remember(queue, *values, cls=0):
    """Put unit vectors of these angles into the queue of a class."""
    rows = torch.tensor([[math.cos(v), math.sin(v)] for v in values]) * 7
    mask = torch.zeros(len(queue.total), len(values), dtype=torch.bool)
    mask[cls] = True
    queue.remember(rows, mask, queue.feats.shape[1], nn.Identity())


def angles(queue, cls=0):
    rows = queue.feats[cls, : queue.filled[cls]].float()
    return sorted(round(math.atan2(y, x), 2) for x, y in rows.tolist())


def test_the_oldest_keys_leave_a_full_queue():
    queue = ClassQueue(3, 4, 2)
    remember(queue, 0.1, 0.2, 0.3, cls=1)
    assert angles(queue, 1) == [0.1, 0.2, 0.3]
    assert queue.filled.tolist() == [0, 3, 0]
    remember(queue, 0.4, 0.5, cls=1)
    assert angles(queue, 1) == [0.2, 0.3, 0.4, 0.5]
    remember(queue, 0.6, 0.7, 0.8, cls=1)
    assert angles(queue, 1) == [0.5, 0.6, 0.7, 0.8]
    assert queue.total.tolist() == [0, 8, 0]
    torch.testing.assert_close(queue.feats[1].float().norm(dim=1), torch.ones(4), atol=1e-3, rtol=0)


def test_keys_are_drawn_at_random_if_there_are_too_many():
    torch.manual_seed(0)
    queue = ClassQueue(1, 4, 2)
    hits = torch.zeros(8)
    for _ in range(200):
        rows = torch.eye(2).repeat(4, 1) + torch.arange(8)[:, None] / 10
        queue.remember(rows, torch.ones(1, 8, dtype=torch.bool), 2, nn.Identity())
        unit = torch.nn.functional.normalize(rows).half()
        last = queue.feats[0, (queue.total - 2) % 4], queue.feats[0, (queue.total - 1) % 4]
        for row in last:
            hits[(unit - row).abs().sum(1).argmin()] += 1
    assert (hits - 50).abs().max() < 25


def test_negatives_are_drawn_from_what_is_filled():
    torch.manual_seed(0)
    queue = ClassQueue(2, 50, 2)
    remember(queue, *(v / 10 for v in range(5)), cls=1)
    drawn = queue.draw(800)
    assert drawn.shape == (2, 800, 2) and (drawn[0] == 0).all()
    found = torch.atan2(drawn[1, :, 1].float(), drawn[1, :, 0].float()).mul(10).round().long()
    assert (torch.bincount(found, minlength=5) - 160).abs().max() < 50 and found.max() == 4


def test_queues_are_saved_and_go_on_where_they_were():
    queue, other = ClassQueue(2, 4, 2), ClassQueue(2, 4, 2)
    remember(queue, 0.1, 0.2, 0.3)
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        remember(each, 0.4, 0.5)
    assert torch.equal(queue.feats, other.feats) and torch.equal(queue.total, other.total)
    assert angles(other) == [0.2, 0.3, 0.4, 0.5]


def test_fewer_pixels_than_keys_are_no_error():
    """Ranks exchange a fixed number of rows, whatever the size of their images."""
    queue = ClassQueue(2, 50, 2)
    mask = torch.tensor([[True, True], [False, True]])
    queue.remember(torch.eye(2), mask, 9, nn.Identity())
    assert queue.total.tolist() == [2, 1]
    assert queue.feats[1, 0].tolist() == [0, 1]
