import pytest
import torch

from mmdmt.models.losses.functional import (
    dynamic_mutual_loss,
    dynamic_self_loss,
    online_pseudo_loss,
)
from mmdmt.registry import MODELS


@pytest.fixture()
def data():
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, generator=gen)
    label = torch.randint(4, (3, 5, 6), generator=gen)
    confidence = torch.rand(3, 5, 6, generator=gen)
    return logits, label, confidence, torch.tensor([True, False, True])


def test_modules_are_registered_and_pass_their_settings_on(data):
    logits, label, confidence, is_pseudo = data
    cases = [
        (
            dict(type='mmdmt.DynamicMutualLoss', gamma1=2, gamma2=3, conflict='flip'),
            dynamic_mutual_loss(*data, 2, 3, conflict='flip', ignore_index=1),
        ),
        (
            dict(type='mmdmt.DynamicSelfLoss', gamma=2),
            dynamic_self_loss(logits, label, is_pseudo, 2, ignore_index=1, confidence=confidence),
        ),
        (
            dict(type='mmdmt.OnlinePseudoLoss', threshold=0.4),
            online_pseudo_loss(logits, label, is_pseudo, 0.4, ignore_index=1),
        ),
    ]
    for cfg, expected in cases:
        assert MODELS.build(cfg)(*data, ignore_index=1) == expected


def test_online_module_leaves_padding_out(data):
    logits, label, _, is_pseudo = data
    valid = torch.rand(label.shape) < 0.5
    expected = online_pseudo_loss(logits, label, is_pseudo, 0.4, valid=valid)
    module = MODELS.build(dict(type='mmdmt.OnlinePseudoLoss', threshold=0.4))
    assert module(*data, valid=valid) == expected
    for mark in (0, 255):  # of the preprocessor, and of transforms that pad labels
        confidence = torch.full(label.shape, 0.5).masked_fill(~valid, mark)
        assert module(logits, label, confidence, is_pseudo) == expected


@pytest.mark.parametrize(
    'cfg, match',
    [
        (dict(type='mmdmt.DynamicMutualLoss', gamma1=-1), '`gamma1` must be in .* got -1'),
        (dict(type='mmdmt.DynamicMutualLoss', conflict='drop'), "'drop'"),
        (dict(type='mmdmt.DynamicSelfLoss', gamma=-1), '`gamma` must be .* got -1'),
        (dict(type='mmdmt.OnlinePseudoLoss', threshold=90), '90'),
        (dict(type='mmdmt.OhemCrossEntropy', thresh=1.5), '`thresh` must be in .* got 1.5'),
        (
            dict(type='mmdmt.OhemCrossEntropy', min_kept=-1),
            '`min_kept` must be an integer .* got -1',
        ),
        (dict(type='mmdmt.OhemCrossEntropy', min_kept=0.7), '`min_kept` must be an integer'),
    ],
)
def test_bad_settings_are_refused_when_the_model_is_built(cfg, match):
    with pytest.raises(ValueError, match=match):
        MODELS.build(cfg)


def test_ohem_refuses_weights_of_pixels(data):
    logits, label, confidence, _ = data
    with pytest.raises(ValueError, match='set no `sampler`'):
        MODELS.build(dict(type='mmdmt.OhemCrossEntropy'))(logits, label, weight=confidence)
