"""Agreement with values computed by the published implementations (tests/data/golden)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmdmt.models.losses import functional as L
from mmdmt.models.losses.contrast import functional as C
from mmdmt.registry import MODELS

GOLDEN = Path(__file__).resolve().parents[2] / 'data' / 'golden'
SEG_FILES = ['seg_loss_0', 'seg_loss_1', 'seg_loss_2']


def load(name):
    with np.load(GOLDEN / f'{name}.npz') as data:
        return {key: torch.from_numpy(value) for key, value in data.items()}


def check(loss, inputs, expected_loss, expected_grad):
    torch.testing.assert_close(loss.detach().double(), expected_loss.double(), rtol=1e-5, atol=1e-7)
    (grad,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-8)


def seg_case(name):
    data = load(name)
    logits = data['logits'].requires_grad_()
    is_pseudo = torch.arange(len(logits)) < data['num_pseudo']
    return data, logits, is_pseudo


@pytest.mark.parametrize('as_long', [False, True])
@pytest.mark.parametrize('name', SEG_FILES)
@pytest.mark.parametrize('key, conflict', [('DynamicMutualLoss', 'ignore'), ('FlipLoss', 'flip')])
def test_dynamic_mutual_loss(name, key, conflict, as_long):
    data, logits, is_pseudo = seg_case(name)
    label = data['label'].long() if as_long else data['label']
    gammas = data['gamma1'].item(), data['gamma2'].item()
    loss, stats = L.dynamic_mutual_loss(
        logits, label, data['confidence'], is_pseudo, *gammas, conflict=conflict
    )
    check(loss, logits, data[f'{key}.loss'], data[f'{key}.grad'])
    assert stats['disagreement'] == data[f'{key}.disagree']
    assert stats['student_wins'] == data[f'{key}.current_win']
    assert stats['mean_weight'].item() == pytest.approx(data[f'{key}.avg_weights'].item(), 1e-5)


@pytest.mark.parametrize('name', SEG_FILES)
@pytest.mark.parametrize('key', ['DynamicNaiveLoss', 'DynamicLoss'])
def test_dynamic_self_loss(name, key):
    data, logits, is_pseudo = seg_case(name)
    gamma = 5 if key == 'DynamicNaiveLoss' else data['gamma1'].item()
    loss, stats = L.dynamic_self_loss(logits, data['label'], is_pseudo, gamma)
    check(loss, logits, data[f'{key}.loss'], data[f'{key}.grad'])
    if key == 'DynamicNaiveLoss':
        expected = data[f'{key}.avg_weights'].item()
        assert stats['mean_weight'].item() == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize('name', SEG_FILES)
def test_online_pseudo_loss(name):
    data, logits, is_pseudo = seg_case(name)
    loss, _ = L.online_pseudo_loss(logits, data['label'], is_pseudo, threshold=0.9)
    check(loss, logits, data['OnlineLoss.loss'], data['OnlineLoss.grad'])


def test_masked_consistency_loss():
    data = load('dual_teacher_0')
    confidence, label = data['teacher_logits'].softmax(dim=1).max(dim=1)
    logits = data['student_logits'].requires_grad_()
    loss, _ = L.masked_consistency_loss(
        logits, label, confidence, data['threshold'].item(), data['valid']
    )
    check(loss, logits, data['ic_loss'], data['ic_grad'])


def test_confidence_share_loss_per_image():
    data = load('dual_teacher_0')
    logits = data['cutmix_student_logits'].requires_grad_()
    loss, _ = L.confidence_share_loss(
        logits,
        data['cutmix_label'],
        data['cutmix_confidence'],
        data['threshold'].item(),
        per_image=True,
    )
    check(loss, logits, data['cutmix_loss'], data['cutmix_grad'])


def test_confidence_share_loss_over_batch():
    data = load('dual_teacher_0')
    prob = data['teacher_logits'].softmax(dim=1)
    mask = data['classmix_mask'].unsqueeze(1)
    confidence, label = (mask * prob + (1 - mask) * prob[data['classmix_perm']]).max(dim=1)
    logits = data['classmix_student_logits'].requires_grad_()
    loss, stats = L.confidence_share_loss(
        logits, label, confidence, data['threshold'].item(), per_image=False
    )
    check(loss, logits, data['classmix_loss'], data['classmix_grad'])
    assert stats['confident_share'].item() == pytest.approx(data['classmix_weight'].item(), 1e-6)


@pytest.mark.parametrize('chunk', [None, 700])
def test_memory_contrast_loss(chunk, monkeypatch):
    if chunk:  # a few anchors at a time
        monkeypatch.setattr(C, '_MAX_SIMILARITIES', chunk)
    data = load('ctt_0')
    feat = data['hl_feat'].requires_grad_()
    loss = L.memory_contrast_loss(
        feat, data['hl_label'], data['hl_mask'], data['hl_bank'], data['hl_temperature'].item()
    )
    check(loss, feat, data['hl_loss'], data['hl_grad'])


@pytest.mark.parametrize('chunk', [None, 700])
def test_peer_contrast_loss(chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(C, '_MAX_SIMILARITIES', chunk)
    data = load('ctt_0')
    feat, peer = data['ll_feat'].requires_grad_(), data['ll_peer_feat'].requires_grad_()
    loss = L.peer_contrast_loss(
        feat,
        peer,
        data['ll_label'],
        data['ll_mask'],
        data['ll_bank'],
        data['ll_temperature'].item(),
    )
    check(loss, feat, data['ll_loss'], data['ll_grad'])


@pytest.mark.parametrize('name', ['ohem_0', 'ohem_1'])
def test_ohem_cross_entropy(name):
    data = load(name)
    logits = data['logits'].requires_grad_()
    for min_kept in data['min_kept'].tolist():
        loss = L.ohem_cross_entropy(logits, data['label'], data['thresh'].item(), min_kept)
        check(loss, logits, data[f'loss_{min_kept}'], data[f'grad_{min_kept}'])


@pytest.mark.parametrize('name', ['ohem_0', 'ohem_1'])
@pytest.mark.parametrize('per_image', [dict(per_image=False), dict(per_image=True), {}])
def test_ohem_as_the_loss_of_a_head(name, per_image):
    """Golden numbers of pixels are those of the batch; each image, by default, has its share."""
    data = load(name)
    logits = data['logits'].requires_grad_()
    images = len(logits) if per_image.get('per_image', True) else 1
    for min_kept in (kept for kept in data['min_kept'].tolist() if kept % images == 0):
        cfg = dict(min_kept=min_kept // images, thresh=data['thresh'].item(), **per_image)
        loss = MODELS.build(dict(type='mmdmt.OhemCrossEntropy', loss_weight=2.0, **cfg))
        loss = loss(logits, data['label'], weight=None, ignore_index=255) / 2
        check(loss, logits, data[f'loss_{min_kept}'], data[f'grad_{min_kept}'])


def test_mixup_weights_and_loss():
    data = load('cls_loss_0')
    is_pseudo = torch.arange(12) < data['num_pseudo']
    ramp = L.sigmoid_ramp(data['steps'].item(), data['T_max'].item())
    gammas = [data[key].item() * ramp for key in ('gamma1', 'gamma2')]
    assert gammas == pytest.approx(
        [data['effective_gamma1'].item(), data['effective_gamma2'].item()]
    )
    args = data['logits_before_mixup'], data['pseudo_probs'], is_pseudo, *gammas
    weights, stats = L.mixup_weights(*args)
    torch.testing.assert_close(weights, data['weights'], rtol=1e-5, atol=1e-8)
    assert stats['disagreement'] == data['stat.disagree']
    assert stats['student_wins'] == data['stat.current_win']
    assert stats['mean_weight'].item() == pytest.approx(data['stat.avg_weights'].item(), 1e-5)

    perm, lam = data['perm'], data['lam'].item()
    mixed, _ = L.mixup_weights(*args, perm=perm, lam=lam)
    torch.testing.assert_close(mixed, data['mixed_weights'], rtol=1e-5, atol=1e-8)
    logits = data['logits_after_mixup'].requires_grad_()
    loss = L.mixup_loss(logits, data['pseudo_probs'], perm, lam, mixed)
    check(loss, logits, data['loss'], data['grad'])
