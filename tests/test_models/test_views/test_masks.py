import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_gpu import NoWaiting

from mmdmt.models.views import BOXES, box_mask, class_mask

FEW = settings(max_examples=40, deadline=None)
# Every aspect has to fit for images that are much longer than wide.
OPTIONS = dict(area=dict(area=(0.02, 0.3), aspect=(0.1, 10.0)))


def boxes_of(kind, num, size, seed=0, **options):
    """Top, left, bottom, right of one box per image."""
    torch.manual_seed(seed)
    return BOXES[kind](num, size, **options)[:, 0].unbind(1)


# ----------------------------------------------------------------------------------------- boxes


@FEW
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    kind=st.sampled_from(sorted(BOXES)),
    seed=st.integers(0, 1000),
)
def test_boxes_lie_inside_the_image(size, kind, seed):
    torch.manual_seed(seed)
    boxes = BOXES[kind](16, size, **OPTIONS.get(kind, {}))
    top, left, bottom, right = boxes.unbind(2)
    assert boxes.shape == (16, 3 if kind == 'french' else 1, 4)
    assert boxes.dtype == torch.long and boxes.device.type == 'cpu'
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= size[0]).all() and (right <= size[1]).all()
    assert (bottom >= top).all() and (right >= left).all()
    if boxes.shape[1] == 1:
        outside = (~box_mask(boxes, size)).sum((1, 2))
        assert torch.equal(outside, ((bottom - top) * (right - left))[:, 0])


@pytest.mark.parametrize('kind', sorted(BOXES))
def test_no_images_have_no_boxes(kind):
    assert BOXES[kind](0, (16, 16)).shape[::2] == (0, 4)


def test_area_boxes_follow_the_published_rejection_sampling():
    """Compare the first moments with boxes drawn by rejection, one at a time."""
    side, num = 200, 4000
    box = torch.stack(boxes_of('area', num, (side, side)), dim=1).double()
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / side**2
    assert area.min() > 0.015 and area.max() <= 0.4
    assert area.mean() == pytest.approx(0.21, abs=0.01)

    def rejected():
        pixels = float(torch.empty(1).uniform_(0.02, 0.4)) * side**2
        while True:
            ratio = float(torch.empty(1).uniform_(0.3, 1 / 0.3))
            height, width = int((pixels * ratio) ** 0.5), int((pixels / ratio) ** 0.5)
            top, left = torch.randint(0, side, (2,)).tolist()
            if top + height <= side and left + width <= side:
                return [top, left, top + height, left + width]

    reference = torch.tensor([rejected() for _ in range(num)]).double()
    torch.testing.assert_close(box.mean(0), reference.mean(0), atol=4.0, rtol=0)
    torch.testing.assert_close(box.std(0), reference.std(0), atol=4.0, rtol=0)


def test_an_area_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match='no box of area'):
        BOXES['area'](4, (10, 10), area=(0.9, 0.9), aspect=(3.0, 3.3))


def test_beta_boxes_have_one_share_for_the_batch():
    """sqrt(1 - l) of both sides, l from a Beta distribution."""
    for options, mean in ((dict(), 0.5), (dict(alpha=8.0, beta=2.0), 0.8)):
        drawn = []
        for seed in range(400):
            top, left, bottom, right = boxes_of('beta', 64, (160, 320), seed, **options)
            free = (top > 0) & (left > 0) & (bottom < 160) & (right < 320)
            height, width = (bottom - top)[free], (right - left)[free]
            if free.any():
                assert len(set(height.tolist())) == len(set(width.tolist())) == 1
                assert height[0].item() / 160 == pytest.approx(width[0].item() / 320, abs=0.02)
            # The box that is clipped least; all of a very large share are clipped.
            drawn.append(1 - (max((bottom - top).tolist()) / 160) ** 2)
        assert sum(drawn) / len(drawn) == pytest.approx(mean, abs=0.04)


def test_beta_boxes_are_centered_beyond_an_eighth_of_each_side():
    # So large a parameter leaves no spread: l = 1/2, sides of 113 and 226.
    top, _, bottom, right = boxes_of('beta', 4000, (160, 320), alpha=1e7, beta=1e7)
    assert bottom.min() == 160 // 8 + 113 // 2
    assert right.min() == 320 // 8 + 226 // 2
    assert top.max() == 159 - 113 // 2


def test_share_boxes_have_one_share_for_the_batch_and_centers_beyond_a_sixteenth():
    shares = []
    for seed in range(300):
        top, left, bottom, right = boxes_of('share', 64, (160, 320), seed)
        free = (top > 0) & (left > 0) & (bottom < 160) & (right < 320)
        height, width = (bottom - top)[free], (right - left)[free]
        if free.any():
            assert len(set(height.tolist())) == len(set(width.tolist())) == 1
            shares.append(height[0].item() / 160)
            assert width[0].item() / 320 == pytest.approx(shares[-1], abs=0.02)
    assert 0.08 < min(shares) < 0.12 and max(shares) > 0.8

    top, _, bottom, right = boxes_of('share', 4000, (160, 320), share=(0.5, 0.5))
    assert bottom.min() == 160 // 16 + 80 // 2 and right.min() == 320 // 16 + 160 // 2
    assert top.max() == 159 - 80 // 2


@FEW
@given(size=st.tuples(st.integers(8, 90), st.integers(8, 90)), seed=st.integers(0, 1000))
def test_half_boxes_are_half_of_the_image(size, seed):
    top, left, bottom, right = boxes_of('half', 32, size, seed)
    height, width = bottom - top, right - left
    # Only the height is rounded.
    assert ((height * width - size[0] * size[1] / 2).abs() <= width / 2).all()
    assert ((width > size[1] / 2).all() and (width < size[1]).all()) or size[1] < 3


def test_half_boxes_take_every_width_and_position():
    top, left, bottom, right = boxes_of('half', 4000, (12, 10))
    assert set((right - left).tolist()) == {6, 7, 8, 9}
    assert top.min() == 0 and left.min() == 0 and bottom.max() == 12 and right.max() == 10


def test_a_single_french_box_has_exactly_its_share():
    torch.manual_seed(0)
    boxes = BOXES['french'](500, (400, 600), count=1, area=(0.5, 0.5))
    share = (~box_mask(boxes[:50], (400, 600))).float().mean((1, 2))
    torch.testing.assert_close(share, torch.full((50,), 0.5), atol=0.003, rtol=0)
    height = (boxes[:, 0, 2] - boxes[:, 0, 0]) / 400
    assert height.min() < 0.53 and height.max() > 0.97  # 0.5 ** u
    assert height.log().mean().item() == pytest.approx(math.log(0.5) / 2, abs=0.03)


def test_three_french_boxes_share_the_area():
    """Each has a third of it, and where two overlap the image is kept."""
    torch.manual_seed(0)
    size = (100, 140)
    boxes = BOXES['french'](2000, size)
    top, left, bottom, right = boxes.unbind(2)
    share = (bottom - top) * (right - left) / (size[0] * size[1])
    assert share.min() > 0.25 / 3 - 0.01 and share.max() < 0.5 / 3 + 0.01
    assert share.mean().item() == pytest.approx(0.375 / 3, abs=0.002)
    inside = torch.zeros(2000, *size, dtype=torch.long)
    for image in range(200):
        for y0, x0, y1, x1 in boxes[image].tolist():
            inside[image, y0:y1, x0:x1] += 1
    assert torch.equal(box_mask(boxes[:200], size), inside[:200] % 2 == 0)
    assert (inside == 2).any()


# ----------------------------------------------------------------------------------------- masks


def test_a_box_mask_is_false_inside():
    mask = box_mask(torch.tensor([[[1, 2, 3, 5]], [[0, 0, 0, 0]]]), (4, 6))
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[1:3, 2:5] = False
    assert torch.equal(mask[0], expected)
    assert mask[1].all()


@FEW
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(4, 20), st.integers(4, 20)),
    seed=st.integers(0, 1000),
    round_up=st.booleans(),
    num_classes=st.sampled_from([7, 256, 300]),
)
def test_half_of_the_present_classes_are_chosen_and_never_padding(
    shape, seed, round_up, num_classes
):
    torch.manual_seed(seed)
    label = torch.randint(0, 6, shape).masked_fill(torch.rand(shape) < 0.1, 255).to(torch.uint8)
    valid = torch.rand(shape) < 0.8
    mask = class_mask(label, num_classes, valid, round_up=round_up)
    counted = valid & (label != 255)
    assert not mask[~counted].any()
    for i in range(shape[0]):
        present = set(label[i][counted[i]].tolist())
        chosen = set(label[i][mask[i]].tolist())
        assert chosen <= present
        half = math.ceil(len(present) / 2) if round_up else len(present) // 2
        assert len(chosen) == half
        # A class is taken as a whole.
        for c in chosen:
            assert torch.equal(mask[i] & (label[i] == c), counted[i] & (label[i] == c))


def test_every_class_is_chosen_and_each_image_on_its_own():
    label = torch.arange(4).repeat(64, 4, 1)  # 64 images with the same four classes
    torch.manual_seed(0)
    mask = class_mask(label)
    chosen = mask[:, 0]
    assert chosen.sum(1).eq(2).all()
    assert chosen.any(0).all()
    assert len({tuple(row) for row in chosen.tolist()}) == 6, 'all pairs of four classes'


def test_a_class_mask_without_any_class_is_empty():
    label = torch.full((2, 3, 3), 255)
    assert not class_mask(label).any()
    assert not class_mask(label, round_up=True).any()
    assert not class_mask(torch.zeros(2, 3, 3, dtype=torch.long)).any(), 'half of one is none'
    assert class_mask(torch.zeros(2, 3, 3, dtype=torch.long), round_up=True).all()
    assert not class_mask(torch.full((1, 2, 2), -1), round_up=True).any()


def test_nothing_waits_for_the_device():
    label = torch.randint(0, 4, (3, 16, 16))
    boxes = {kind: BOXES[kind](3, (16, 16)) for kind in BOXES}
    with NoWaiting():
        assert class_mask(label, valid=label > 0).shape == label.shape
        for each in boxes.values():
            assert box_mask(each, (16, 16)).shape == label.shape
