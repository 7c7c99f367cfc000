import math

import pytest
import torch

from mmdmt.models.forward import Targets
from mmdmt.models.views import AdaptiveCutMix, reliability


def batch(num=4, num_labeled=4, size=32):
    """Unlabeled images of values 0, 1, 2..., labeled ones of -1, -2, ..., targets likewise."""
    shape = (num, size, size)
    number = torch.arange(num).view(-1, 1, 1).expand(shape)
    images = number[:, None].expand(num, 3, size, size).float()
    targets = Targets(number.clone(), number / 10, torch.ones(shape, dtype=torch.bool))
    order = torch.arange(num_labeled).view(-1, 1, 1)
    labeled = -(1.0 + order[:, None].expand(num_labeled, 3, size, size))
    truth = (100 + order).expand(num_labeled, size, size).clone()
    truth[:, :, : size // 2] = 255
    return images, targets, labeled, truth


@pytest.mark.parametrize('num_labeled', [4, 2])
def test_pixels_come_with_their_labels_from_the_image_its_partner_and_the_partners_labeled_one(
    num_labeled,
):
    images, targets, labeled, truth = batch(num_labeled=num_labeled)
    seen_labeled = 0
    for seed in range(10):
        torch.manual_seed(seed)
        mixed, found = AdaptiveCutMix()(images, targets, torch.zeros(4), labeled, truth)
        value = mixed[:, 0]
        assert torch.equal(mixed, value[:, None].expand_as(mixed))
        own = value >= 0
        # Pixels of unlabeled images carry the label and confidence of their source.
        assert torch.equal(found.label[own], value[own].long())
        torch.testing.assert_close(found.confidence[own], value[own] / 10)
        assert found.valid[own].all()
        # Pixels of labeled images carry ground truth, which is ignored in their left half.
        pasted = ~own
        seen_labeled += pasted.sum()
        index = (-value[pasted] - 1).long()
        left = (torch.arange(32) < 16).view(1, 1, -1).expand_as(value)[pasted]
        assert torch.equal(found.valid[pasted], ~left)
        assert torch.equal(found.label[pasted][~left], 100 + index[~left])
        assert (found.confidence[pasted][~left] == 1).all()
        # One image meets one partner only, the labeled image has the same place after shuffling.
        for row in range(4):
            others = set(value[row].unique().tolist()) - {float(row)}
            assert len([each for each in others if each >= 0]) <= 1
            assert len([each for each in others if each < 0]) <= 1
    assert seen_labeled > 0


def test_labeled_boxes_come_with_one_minus_the_reliability():
    images, targets, labeled, truth = batch(num=400, num_labeled=400, size=8)
    view = AdaptiveCutMix(unlabeled=(1e-3, 1e3))  # boxes of the whole image, where centered
    for trust, expected in ((1.0, 0.0), (0.3, 0.7), (0.0, 1.0)):
        torch.manual_seed(0)
        # Large boxes, so that none is hidden.
        view.labeled = (1e-3, 1e3)
        mixed, _ = view(images, targets, torch.full((400,), trust), labeled, truth)
        share = (mixed[:, 0] < 0).flatten(1).any(1).float().mean()
        assert share.item() == pytest.approx(expected, abs=0.07)


def test_labeled_boxes_are_smaller_than_the_others_and_every_image_gets_one():
    images, targets, labeled, truth = batch(num=8, num_labeled=8, size=64)
    shares, foreign = [], []
    own = torch.arange(8.0).view(-1, 1, 1)
    for seed in range(60):
        torch.manual_seed(seed)
        mixed, _ = AdaptiveCutMix()(images, targets, torch.ones(8), labeled, truth)
        changed = (mixed[:, 0] != own).flatten(1)
        foreign.append(changed.float().mean())
        torch.manual_seed(seed)
        view = AdaptiveCutMix(unlabeled=(1e-3, 1e3))
        mixed, _ = view(images, targets, torch.zeros(8), labeled, truth)
        shares.append((mixed[:, 0] < 0).float().mean())
    assert 0.25 < sum(foreign) / 60 < 0.5  # 1/2, clipped at the border
    assert sum(shares) / 60 < 0.2  # 1/5, clipped


def test_one_image_is_mixed_with_a_labeled_one():
    images, targets, labeled, truth = batch(num=1, num_labeled=3)
    view = AdaptiveCutMix(unlabeled=(1e-3, 1e3), labeled=(1e-3, 1e3))
    mixed, found = view(images, targets, torch.zeros(1), labeled, truth)
    assert set(mixed.unique().tolist()) <= {0.0, -1.0} and (mixed < 0).any()
    assert found.label.max() == 255 or found.label.max() == 100


def test_reliability_is_confidence_times_certainty():
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 4, 6, 6)
    valid = torch.ones(2, 6, 6, dtype=torch.bool)
    valid[1, :, 3:] = False
    found = reliability(logits, valid)
    for image in range(2):
        scores = []
        for row in range(6):
            for column in range(6 if image == 0 else 3):
                p = logits[image, :, row, column].double().softmax(0).tolist()
                entropy = -sum(each * math.log(each) for each in p)
                scores.append(max(p) * (1 - entropy / math.log(4)))
        assert found[image].item() == pytest.approx(sum(scores) / len(scores), rel=1e-5)
    small = valid[:1, :2, :2]
    assert abs(reliability(torch.zeros(1, 4, 2, 2), small).item()) < 1e-6
    sure = torch.tensor([0.0, 500.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert reliability(sure, small).item() == 1
    assert reliability(sure.half(), ~small).item() == 0


def test_reads_nothing_back_from_the_device():
    """A tensor on the meta device has no values, so any read of one raises."""
    images, targets, labeled, truth = batch()
    targets = Targets(*(each.to('meta') for each in targets))
    trust = reliability(torch.rand(4, 3, 32, 32, device='meta'), targets.valid)
    mixed, found = AdaptiveCutMix()(
        images.to('meta'), targets, trust, labeled.to('meta'), truth.to('meta')
    )
    assert mixed.device.type == found.label.device.type == 'meta'


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(prob=2.0), 'prob'),
        (dict(labeled=(0.0, 1.0)), 'labeled'),
        (dict(unlabeled=4.0), 'unlabeled'),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=f'AdaptiveCutMix.{match}'):
        AdaptiveCutMix(**settings)


def test_images_of_another_size_are_refused():
    images, targets, labeled, truth = batch()
    with pytest.raises(ValueError, match='crops of the same size'):
        AdaptiveCutMix()(images, targets, torch.ones(4), labeled[..., :16], truth[..., :16])
