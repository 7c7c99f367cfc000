import pytest
import torch

from mmdmt.models.forward import Targets
from mmdmt.models.methods.dual_teacher import PUBLISHED_SHIFTS
from mmdmt.models.views import Shift


def aligned(num=8, size=16):
    """Images that show the label of their pixels."""
    torch.manual_seed(0)
    label = torch.randint(0, 4, (num, size, size))
    images = (label / 4)[:, None].expand(-1, 3, -1, -1)
    return images, Targets(label, label / 10, label > 0)


@pytest.mark.parametrize('settings', PUBLISHED_SHIFTS)
def test_labels_confidence_and_validity_stay_on_their_pixels(settings):
    images, targets = aligned()
    shift = Shift(**dict(settings, strong=None))
    mixed, found = shift(images, targets, padded=True)
    assert not torch.equal(found.label, targets.label)
    assert torch.equal((mixed[:, 0] * 4).long(), found.label)
    assert torch.equal(found.confidence, found.label / 10)
    assert torch.equal(found.valid, found.label > 0)


def test_the_mixed_images_are_augmented_and_not_their_padding(monkeypatch):
    shift = Shift(**PUBLISHED_SHIFTS[0])
    seen = {}

    def invert(images, valid):
        seen.update(images=images, valid=valid)
        return 1 - images

    monkeypatch.setattr(shift.strong, 'forward', invert)
    shift.flip_prob = 0
    images, targets = aligned()
    for padded in (True, False):
        mixed, found = shift(images, targets, padded)
        assert torch.equal((seen['images'][:, 0] * 4).long(), found.label)
        assert torch.equal(mixed, 1 - seen['images'])
        assert seen['valid'] is (found.valid if padded else None)


@pytest.mark.parametrize('prob', [0, 0.5, 1])
def test_images_are_flipped_one_by_one(prob):
    images, targets = aligned(64)
    mixed, found = Shift(flip_prob=prob)(images, targets, padded=False)
    flipped = (found.label == targets.label.flip(-1)).flatten(1).all(1)
    assert flipped.float().mean() == pytest.approx(prob, abs=0.2 if prob == 0.5 else 0)
    assert torch.equal(found.label[~flipped], targets.label[~flipped])
    assert torch.equal((mixed[:, 0] * 4).long(), found.label)


@pytest.mark.parametrize('setting', [dict(view='soft'), dict(flip_prob=2)])
def test_bad_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f'shifts.{next(iter(setting))}'):
        Shift(**setting)
