import numpy as np
import pytest
import torch
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.losses.functional import masked_cross_entropy
from mmdmt.models.losses.region import UnsupervisedLoss, dice_loss, focal_loss
from mmdmt.registry import MODELS


def pixels(channels=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, channels, 4, 5))
    label = rng.integers(0, 2, (2, 4, 5))  # class 2 does not occur
    confidence = rng.random((2, 4, 5))
    valid = rng.random((2, 4, 5)) < 0.8
    return logits, label, confidence, valid


def probabilities(logits):
    if logits.shape[1] == 1:
        one = 1 / (1 + np.exp(-logits))
        return np.concatenate([1 - one, one], 1)
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True)


def dice_of(logits, label, kept, eps):
    """Dice one class at a time, over lists of pixels."""
    prob, losses = probabilities(logits).transpose(0, 2, 3, 1)[kept], []
    for class_id in np.unique(label[kept]):
        p, t = prob[:, class_id], (label[kept] == class_id).astype(float)
        losses.append(1 - (2 * (p * t).sum() + eps) / (p.sum() + t.sum() + eps))
    return np.mean(losses)


def focal_of(logits, label, kept, gamma):
    prob = probabilities(logits).transpose(0, 2, 3, 1)[kept]
    own = prob[np.arange(len(prob)), label[kept]]
    return (-((1 - own) ** gamma) * np.log(own)).mean()


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_formulas(channels):
    logits, label, _, kept = pixels(channels)
    tensors = [torch.from_numpy(values) for values in (logits, label, kept)]
    assert float(dice_loss(*tensors, eps=0.5)) == pytest.approx(dice_of(logits, label, kept, 0.5))
    assert float(focal_loss(*tensors)) == pytest.approx(focal_of(logits, label, kept, 2), rel=1e-5)
    assert float(focal_loss(*tensors, gamma=0.0)) == pytest.approx(
        focal_of(logits, label, kept, 0), rel=1e-5
    )


@pytest.mark.parametrize('function', [dice_loss, focal_loss])
def test_nothing_kept_is_0_with_a_gradient(function):
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = function(logits, torch.full((1, 3, 3), 255), torch.zeros(1, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize('channels', [1, 3])
def test_modules_leave_ignored_pixels_out(channels):
    logits, label, _, kept = pixels(channels)
    label = np.where(kept, label, 255)
    tensors = [torch.from_numpy(values) for values in (logits, label)]
    dice = MODELS.build(dict(type='mmdmt.DiceLoss', loss_weight=3.0))
    focal = MODELS.build(dict(type='mmdmt.FocalLoss', gamma=1.0))
    assert float(dice(*tensors)) == pytest.approx(3 * dice_of(logits, label, kept, 1.0))
    assert float(focal(*tensors)) == pytest.approx(focal_of(logits, label, kept, 1), rel=1e-5)
    with pytest.raises(ValueError, match='sampler'):
        dice(*tensors, weight=torch.ones(2, 4, 5))


@pytest.mark.parametrize('normalizer', ['valid', 'all', 'kept'])
def test_normalizers_of_pseudo_labels(normalizer):
    logits, label, confidence, valid = pixels()
    kept = valid & (confidence >= 0.4)
    share = {
        'valid': kept.sum() / valid.sum(),
        'all': kept.sum() / kept.size,
        'kept': kept.size / kept.sum(),
    }[normalizer]
    tensors = [torch.from_numpy(values) for values in (logits, label, confidence)]
    arguments = (*tensors, 0.4, torch.from_numpy(valid), normalizer)
    ce, stats = masked_cross_entropy(*arguments)
    for given, expected in (
        ('ce', float(ce)),
        ('dice', share * dice_of(logits, label, kept, 1.0)),
        (dict(type='FocalLoss', gamma=3), share * focal_of(logits, label, kept, 3)),
        (
            ['ce', dict(type='dice', loss_weight=2.0)],
            float(ce) + 2 * share * dice_of(logits, label, kept, 1.0),
        ),
    ):
        loss, found = UnsupervisedLoss(given)(*arguments)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert found['keep_ratio'] == stats['keep_ratio']
    # A mean over kept pixels is multiplied alike, whichever it is.
    focal, _ = UnsupervisedLoss(dict(type='focal', gamma=0))(*arguments)
    torch.testing.assert_close(focal, ce.to(focal))


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('lovasz', 'unsup_loss'),
        (dict(type='dice', gamma=2), 'gamma'),
        (dict(type='focal', gamma=-1), 'gamma'),
        ([], 'unsup_loss'),
    ],
)
def test_settings_without_a_meaning_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        UnsupervisedLoss(given)


@pytest.mark.parametrize('method', ['MeanTeacher', 'FixMatch', 'UniMatch', 'UniMatchV2', 'U2PL'])
def test_methods_learn_it(method):
    torch.manual_seed(0)
    batch = semi_batch()
    found = []
    settings = {} if method == 'U2PL' else dict(threshold=0.3)
    for given in ('ce', ['ce', dict(type='dice', loss_weight=2.0)]):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(type=f'mmdmt.{method}', segmentor=tiny_segmentor(), unsup_loss=given, **settings)
        )
        torch.manual_seed(1)
        found.append(model.train().loss(*batch)['unsup_loss'])
    assert found[1] > found[0] > 0


def test_a_threshold_that_all_pixels_reach_is_named(monkeypatch):
    lines = []
    where = 'mmdmt.models.methods.weak_to_strong.print_log'
    monkeypatch.setattr(where, lambda text, *_: lines.append(text))
    segmentor = tiny_segmentor(num_classes=2)
    for threshold in (0.5, 0.51, 0.0):
        MODELS.build(dict(type='mmdmt.MeanTeacher', segmentor=segmentor, threshold=threshold))
    assert len(lines) == 1
    assert 'threshold` 0.5 keeps every pixel: with 2 classes' in lines[0]
