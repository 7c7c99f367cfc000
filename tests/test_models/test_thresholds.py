import pytest
import torch

from mmdmt.models.forward import Targets
from mmdmt.models.thresholds import AdaptiveThreshold, FixedThreshold, build_threshold


def targets():
    label = torch.tensor([[[0, 0, 2, 2]]])
    confidence = torch.tensor([[[0.6, 0.9, 0.5, 1.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    return Targets(label, confidence, valid)


def test_a_number_stays():
    threshold = build_threshold(0.9)
    assert isinstance(threshold, FixedThreshold) and threshold(targets()) == 0.9
    assert not threshold.state_dict()


def test_it_follows_the_largest_confidence_of_each_predicted_class():
    threshold = AdaptiveThreshold(init=0.8, momentum=0.9, num_classes=3)
    # Class 0: 0.9; class 1 is not predicted; class 2: 0.5, since its other pixel is padding.
    expected = 0.9 * 0.8 + 0.1 * (0.9 + 0.5) / 2
    assert threshold(targets()).item() == pytest.approx(expected)
    other = AdaptiveThreshold(init=0.1)
    other.load_state_dict(threshold.state_dict())
    assert other.value.item() == pytest.approx(expected)


def test_it_stays_in_eval_mode():
    threshold = AdaptiveThreshold(init=0.8).eval()
    assert threshold(targets()).item() == pytest.approx(0.8)


def test_it_is_built_by_config_and_checked():
    built = build_threshold(dict(type='mmdmt.AdaptiveThreshold', init=0.7))
    assert built.value.item() == pytest.approx(0.7)
    for wrong in (1.2, 'x', True):
        with pytest.raises(ValueError, match='threshold'):
            build_threshold(wrong)
    with pytest.raises(ValueError, match='momentum'):
        AdaptiveThreshold(momentum=2)
