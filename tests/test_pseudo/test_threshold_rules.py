"""Selection rules beside DMT's: argmax of p over threshold, one share of all pixels."""

import numpy as np
import pytest
import torch

from mmdmt.pseudo import ClassBalancedThreshold, apply_thresholds, ratio_rule_thresholds
from mmdmt.pseudo.thresholds import threshold_ratio_labels


def probabilities(num_classes=5, shape=(7, 9), seed=0):
    gen = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(num_classes, *shape, generator=gen)).softmax(dim=0)


def apply_threshold_ratio(prob, thresholds):
    """How labels of the rule are made and, when they are read, selected."""
    label, confidence = threshold_ratio_labels(prob, thresholds)
    return apply_thresholds(label, confidence, torch.as_tensor(thresholds)), confidence


def test_threshold_ratio_rule_one_pixel_at_a_time():
    prob, thresholds = probabilities(), torch.tensor([0.9, 0.5, 0.3, 0.7, 0.2])
    label, confidence = apply_threshold_ratio(prob, thresholds)
    for y, x in np.ndindex(label.shape):
        ratios = [prob[c, y, x].item() / thresholds[c].item() for c in range(5)]
        best = int(np.argmax(ratios))
        assert label[y, x] == (best if ratios[best] >= 1 else 255)
        assert confidence[y, x] == prob[best, y, x]
    assert 0 < (label == 255).float().mean() < 1


def test_a_class_with_a_low_threshold_takes_pixels_of_likelier_ones():
    prob = torch.tensor([[0.6], [0.4]])
    thresholds = torch.tensor([0.9, 0.2])
    label, confidence = apply_threshold_ratio(prob, thresholds)
    assert label.item() == 1 and confidence.item() == pytest.approx(0.4)
    argmax = apply_thresholds(torch.tensor([0]), torch.tensor([0.6]), thresholds)
    assert argmax.item() == 255  # DMT's rule would have dropped the pixel


def test_equal_thresholds_give_the_rule_of_dmt():
    prob, thresholds = probabilities(), torch.full((5,), 0.6)
    top = prob.max(dim=0)
    expected = apply_thresholds(top.indices, top.values, thresholds)
    assert torch.equal(apply_threshold_ratio(prob, thresholds)[0], expected)


def test_nothing_is_left_out_at_ratio_one():
    prob = probabilities()
    limits = ratio_rule_thresholds(torch.tensor([0.9, 0.5, 1e-5, 0.7, 0.2]), 1.0)
    assert limits.tolist() == pytest.approx([1e-4] * 5)
    assert torch.equal(apply_threshold_ratio(prob, limits)[0], prob.argmax(dim=0))


def test_a_class_without_a_rank_does_not_win_everywhere():
    limits = ratio_rule_thresholds(torch.tensor([0.9, 1e-5]), 0.2)
    assert limits.tolist() == pytest.approx([0.9, 1.0])
    label, _ = apply_threshold_ratio(torch.tensor([[0.95], [0.05]]), limits)
    assert label.item() == 0


def fed(bins=None, num_classes=3):
    """Class 0 is confident, class 1 is not, class 2 was never predicted."""
    counter = ClassBalancedThreshold(num_classes, pixel_stride=1, bins=bins)
    label = torch.tensor([[0] * 50 + [1] * 50])
    confidence = torch.cat([torch.linspace(0.9, 0.99, 50), torch.linspace(0.4, 0.6, 50)])[None]
    counter.update(label, confidence)
    return counter, label, confidence


@pytest.mark.parametrize('bins', [None, 500])
def test_one_share_of_all_pixels_is_not_balanced(bins):
    counter, label, confidence = fed(bins)
    thresholds = counter.compute(0.5, balance='global')
    assert thresholds.shape == (3,) and len(set(thresholds.tolist())) == 1
    kept = apply_thresholds(label, confidence, thresholds)
    assert (kept == 0).sum() == 50 and (kept == 1).sum() <= 1
    balanced = apply_thresholds(label, confidence, counter.compute(0.5))
    assert (balanced == 0).sum() == pytest.approx(26, abs=1)
    assert (balanced == 1).sum() == pytest.approx(26, abs=1)


@pytest.mark.parametrize('bins', [None, 100])
def test_the_whole_share_of_all_pixels_keeps_everything(bins):
    counter, label, confidence = fed(bins)
    thresholds = counter.compute(1.0, balance='global')
    assert torch.equal(apply_thresholds(label, confidence, thresholds), label)
    assert ClassBalancedThreshold(2, bins=bins).compute(0.5, balance='global')[0] < 1e-4


def test_an_unknown_balance_is_refused():
    with pytest.raises(ValueError, match="'image'"):
        fed()[0].compute(0.5, balance='image')
