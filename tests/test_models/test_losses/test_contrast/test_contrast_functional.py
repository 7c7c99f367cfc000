"""Contrastive losses against a slow, independent reference, and where they could break."""

import math

import numpy as np
import pytest
import torch

from mmdmt.models.losses import functional
from mmdmt.models.losses.contrast import functional as C


def contrast_case(num_classes=3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    feat = torch.randn(2, 6, 4, 5, generator=gen, dtype=torch.double)
    peer = torch.randn(2, 6, 4, 5, generator=gen, dtype=torch.double)
    label = torch.randint(num_classes, (2, 4, 5), generator=gen)
    label[0, 0] = 255
    mask = torch.rand(2, 4, 5, generator=gen) < 0.6
    bank = torch.randn(num_classes, 5, 6, generator=gen, dtype=torch.double)
    return feat, peer, label, mask, bank


def reference_contrast(feat, label, mask, bank, temperature, peer=None):
    """CTT's losses, one anchor and one positive at a time."""

    def similarity(a, b):
        return math.exp(a @ b / np.linalg.norm(a) / np.linalg.norm(b) / temperature)

    per_class = {}
    bank = bank.numpy()
    for n, y, x in np.ndindex(*label.shape):
        cls = label[n, y, x].item()
        if not mask[n, y, x] or cls >= len(bank):
            continue
        anchor = feat[n, :, y, x].numpy()
        positives = bank[cls] if peer is None else [peer[n, :, y, x].numpy()]
        others = np.concatenate([bank[c] for c in range(len(bank)) if c != cls])
        down = sum(similarity(anchor, other) for other in others)
        ups = [similarity(anchor, positive) for positive in positives]
        per_class.setdefault(cls, []).append(np.mean([-math.log(u / (u + down)) for u in ups]))
    return np.mean([np.mean(losses) for losses in per_class.values()])


@pytest.mark.parametrize('temperature', [0.1, 0.5])
def test_contrastive_losses_match_the_formula(temperature):
    feat, peer, label, mask, bank = contrast_case()
    loss = C.memory_contrast_loss(feat, label, mask, bank, temperature)
    expected = reference_contrast(feat, label, mask, bank, temperature)
    assert loss.item() == pytest.approx(expected)
    loss = C.peer_contrast_loss(feat, peer, label, mask, bank, temperature)
    expected = reference_contrast(feat, label, mask, bank, temperature, peer)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize('chunk', [1 << 24, 40])
def test_contrastive_gradients_by_finite_differences(chunk, monkeypatch):
    monkeypatch.setattr(C, '_MAX_SIMILARITIES', chunk)
    feat, peer, label, mask, bank = contrast_case()
    args = feat[:1, :, :2, :3].requires_grad_(), label[:1, :2, :3], mask[:1, :2, :3]
    assert torch.autograd.gradcheck(
        lambda f: C.memory_contrast_loss(f, *args[1:], bank, 0.5), args[0]
    )
    assert torch.autograd.gradcheck(
        lambda f: C.peer_contrast_loss(f, peer[:1, :, :2, :3], *args[1:], bank), args[0]
    )


def test_contrast_teaches_only_the_learning_network():
    feat, peer, label, mask, bank = contrast_case()
    for tensor in (feat, peer, bank):
        tensor.requires_grad_()
    loss = C.memory_contrast_loss(feat, label, mask, bank)
    loss = loss + C.peer_contrast_loss(feat, peer, label, mask, bank)
    loss.backward()
    assert feat.grad.abs().sum() > 0
    assert peer.grad is None
    assert bank.grad is None


def test_contrast_without_anchors_is_zero_with_a_gradient():
    feat, peer, label, mask, bank = contrast_case()
    feat.requires_grad_()
    for off in (torch.zeros_like(mask), mask & (label == 255)):
        loss = C.memory_contrast_loss(feat, label, off, bank)
        loss = loss + C.peer_contrast_loss(feat, peer, label, off, bank)
        assert loss == 0
        assert (torch.autograd.grad(loss, feat)[0] == 0).all()


def test_rows_that_are_not_filled_are_as_if_not_there():
    feat, peer, label, mask, bank = contrast_case()
    filled = torch.ones(3, 5, dtype=torch.bool)
    filled[:, 3:] = False
    for name, args in (('memory', (feat,)), ('peer', (feat, peer))):
        loss = getattr(C, f'{name}_contrast_loss')
        full = loss(*args, label, mask, bank)
        torch.testing.assert_close(loss(*args, label, mask, bank, filled=filled | True), full)
        part = loss(*args, label, mask, bank, filled=filled)
        torch.testing.assert_close(part, loss(*args, label, mask, bank[:, :3]))


def test_classes_with_nothing_filled_have_no_anchors_and_finite_gradients():
    feat, peer, label, mask, bank = contrast_case()
    filled = torch.zeros(3, 5, dtype=torch.bool)
    filled[0] = filled[1, :2] = True
    feat.requires_grad_()
    loss = C.memory_contrast_loss(feat, label, mask, bank, filled=filled)
    known = C.memory_contrast_loss(feat, label, mask & (label != 2), bank, filled=filled)
    torch.testing.assert_close(loss, known)
    loss = loss + C.peer_contrast_loss(feat, peer, label, mask, bank, filled=filled)
    loss = loss + C.memory_contrast_loss(feat, label, mask, bank, filled=filled & False)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(feat.grad).all() and feat.grad.abs().sum() > 0


def test_contrast_keeps_float32_under_autocast():
    feat, _, label, mask, bank = (
        t.float() if t.is_floating_point() else t for t in contrast_case()
    )
    expected = C.memory_contrast_loss(feat, label, mask, bank, 0.1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = C.memory_contrast_loss(feat, label, mask, bank, 0.1)
    assert got == expected
    half = C.memory_contrast_loss(feat.half(), label, mask, bank, 0.1)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    'change, match',
    [
        (dict(bank=torch.zeros(1, 5, 6)), 'at least 2 classes'),
        (dict(bank=torch.zeros(3, 5, 7)), r'\(C, K, 6\)'),
        (dict(filled=torch.ones(3, 4, dtype=torch.bool)), r'`filled` must be .* \(3, 5\)'),
        (dict(mask=torch.ones(2, 8, 10, dtype=torch.bool)), 'feature map'),
    ],
)
def test_contrast_refuses_bad_input(change, match):
    feat, _, label, mask, bank = contrast_case()
    args = {**dict(feat=feat, label=label, mask=mask, bank=bank), **change}
    with pytest.raises(ValueError, match=match):
        C.memory_contrast_loss(**args)


def test_peer_features_of_another_shape_are_refused():
    feat, peer, label, mask, bank = contrast_case()
    with pytest.raises(ValueError, match='peer_feat'):
        C.peer_contrast_loss(feat, peer[:, :, :2], label, mask, bank)


def test_contrast_never_waits_for_the_device():
    """On the meta device there are no values, so reading one back raises."""
    feat, peer, label, mask, bank = (t.to('meta') for t in contrast_case())
    feat.requires_grad_()
    C.memory_contrast_loss(feat, label, mask, bank).backward()
    C.peer_contrast_loss(feat, peer, label, mask, bank).backward()


@pytest.mark.parametrize('name', ['memory_contrast_loss', 'peer_contrast_loss'])
def test_the_losses_are_found_among_the_others(name):
    assert getattr(functional, name) is getattr(C, name)
