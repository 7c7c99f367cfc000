import pytest
import torch
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits, joint_forward
from mmdmt.models.methods.networks import build_segmentor
from mmdmt.models.perturbations import (
    complementary_dropout,
    perturbed_features,
    with_channel_dropout,
)


def maps(count=4, channels=(6, 6, 10)):
    return [torch.rand(count, each, 5, 5) + 1 for each in channels]


def scales(before, after):
    """Factor of each channel of each image, which has to be the same on all of its pixels."""
    ratio = after / before
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    return ratio[:, :, 0, 0].round(decimals=4)


def test_channel_dropout_appends_copies_without_some_channels():
    torch.manual_seed(0)
    before = maps(64)
    after = with_channel_dropout(before, 0.25)
    found = []
    for old, new in zip(before, after):
        assert torch.equal(new[:64], old)
        found.append(scales(old, new[64:]))
        assert found[-1].unique().tolist() == pytest.approx([0, 4 / 3], abs=1e-3)
        assert 0.15 < (found[-1] == 0).float().mean() < 0.35
    assert not torch.equal(found[0], found[1]), 'each map has a draw of its own'


def test_without_probability_nothing_is_dropped():
    before = maps()
    for old, new in zip(before, with_channel_dropout(before, 0.0)):
        assert torch.equal(new, torch.cat([old, old]))


def test_complementary_dropout_shares_the_channels_between_two_views():
    torch.manual_seed(0)
    before = maps(16)
    after = complementary_dropout(before, keep_clean=0.5)
    found = [scales(old, new) for old, new in zip(before, after)]
    for each in found:
        first, second = each.chunk(2)
        assert torch.equal(first + second, torch.full_like(first, 2))
        clean = (first == 1).all(1)
        assert clean.sum() == 4
        assert set(first[~clean].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found[0], found[1]), 'taps of a transformer share the draw'
    assert torch.equal((found[0][:8] == 1).all(1), (found[2][:8] == 1).all(1))


@pytest.mark.parametrize('keep_clean, count, expected', [(1.0, 3, 3), (0.0, 3, 0), (0.5, 1, 0)])
def test_the_share_of_clean_images_is_rounded_down(keep_clean, count, expected):
    before = maps(2 * count)
    (first, *_) = complementary_dropout(before, keep_clean)
    assert (scales(before[0], first)[:count] == 1).all(1).sum() == expected


def network():
    torch.manual_seed(0)
    return build_segmentor(tiny_segmentor(dropout=0)).eval()


def test_features_are_perturbed_inside_the_block_only():
    segmentor, images = network(), torch.rand(2, 3, 32, 32)
    plain = dense_logits(segmentor, images)
    with perturbed_features(segmentor, lambda found: [each * 0 for each in found]):
        inside = dense_logits(segmentor, images)
    assert not torch.equal(inside, plain)
    torch.testing.assert_close(inside, inside[:, :, :1, :1].expand_as(inside))
    assert torch.equal(dense_logits(segmentor, images), plain)


@pytest.mark.parametrize('joint', [True, False])
@pytest.mark.parametrize('with_sup', [True, False])
def test_only_features_of_unlabeled_images_are_perturbed(joint, with_sup, monkeypatch):
    segmentor = network()
    if not joint:
        monkeypatch.setattr('mmdmt.models.forward.has_joint_forward', lambda _: False)
    inputs, samples = semi_batch()
    sup, unsup = inputs['sup'], inputs['unsup_weak']
    arguments = (segmentor, sup, samples['sup'], unsup, with_sup)
    losses, plain = joint_forward(*arguments)
    again, found = joint_forward(*arguments, perturb=lambda each: with_channel_dropout(each, 0.9))
    for key, value in losses.items():
        torch.testing.assert_close(again[key], value)
    torch.testing.assert_close(found[: len(plain)], plain)
    assert len(found) == len(plain) + len(unsup)
    assert not torch.allclose(found[len(plain) :], plain[-len(unsup) :])
