import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdmt.models.views import (
    ClassMix,
    CutMix,
    classmix,
    classmix_mask,
    cutmix,
    cutmix_boxes,
    cutmix_mask,
    mix,
    mix_partners,
)
from mmdmt.registry import MODELS

FEW = settings(max_examples=40, deadline=None)
SHAPES = st.tuples(st.integers(1, 5), st.integers(4, 20), st.integers(4, 20))


def aligned(num, height, width, num_classes=6, seed=0):
    """Aligned tensors in which every pixel of every image is told apart by its value."""
    generator = torch.Generator().manual_seed(seed)
    code = torch.arange(num * height * width).view(num, height, width)
    image = torch.stack([code.float(), code.float() / 7, -code.float()], dim=1)
    label = torch.randint(0, num_classes, (num, height, width), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    confidence = torch.rand(num, height, width, generator=generator)
    valid = torch.rand(num, height, width, generator=generator) < 0.8
    return image, label.to(torch.uint8), confidence, valid


def modules():
    return [
        CutMix(prob=0.5),
        CutMix(prob=1.0, boxes='beta', partner='shuffle'),
        CutMix(prob=1.0, partner='flip'),
        ClassMix(),
        ClassMix(prob=0.5, round_up=True, partner='shuffle'),
    ]


@FEW
@given(shape=SHAPES, seed=st.integers(0, 1000), which=st.integers(0, 4))
def test_every_pixel_comes_whole_from_one_of_two_images(shape, seed, which):
    tensors = aligned(*shape, seed=seed)
    torch.manual_seed(seed)
    mixed = modules()[which](*tensors, label=tensors[1], valid=tensors[3])
    partner = mixed.partner
    assert sorted(partner.tolist()) == list(range(shape[0]))
    code = mixed.tensors[0][:, 0].long()
    image_index, pixel = code // (shape[1] * shape[2]), code % (shape[1] * shape[2])
    own = torch.arange(shape[0]).view(-1, 1, 1).expand_as(code)
    # Same place, and from the image itself or from its partner, as the mask says.
    assert torch.equal(pixel, torch.arange(shape[1] * shape[2]).view(1, *shape[1:]).expand(shape))
    assert torch.equal(image_index, torch.where(mixed.mask, own, partner[own]))
    # Whatever is carried along comes bit-equal from the very same pixel.
    for before, after in zip(tensors, mixed.tensors):
        assert after.dtype == before.dtype and after.shape == before.shape
        flat = before.movedim(1, -1) if before.ndim == 4 else before
        flat = flat.reshape(shape[0] * shape[1] * shape[2], -1)
        got = after.movedim(1, -1) if after.ndim == 4 else after
        assert torch.equal(got.reshape(code.numel(), -1), flat[code.flatten()])


@FEW
@given(seed=st.integers(0, 1000), which=st.integers(0, 4))
def test_seed_decides(seed, which):
    tensors = aligned(4, 12, 10)
    results = []
    for _ in range(2):
        torch.manual_seed(seed)
        results.append(modules()[which](*tensors, label=tensors[1]))
    assert torch.equal(results[0].mask, results[1].mask)
    assert torch.equal(results[0].tensors[0], results[1].tensors[0])


@FEW
@given(
    shape=SHAPES,
    seed=st.integers(0, 1000),
    round_up=st.booleans(),
    num_classes=st.sampled_from([7, 256, 300]),
)
def test_classmix_takes_half_of_the_present_classes(shape, seed, round_up, num_classes):
    _, label, _, valid = aligned(*shape, seed=seed)
    torch.manual_seed(seed)
    mask = classmix_mask(label, num_classes, valid, round_up=round_up)
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


def test_classmix_chooses_every_class_and_each_image_on_its_own():
    label = torch.arange(4).repeat(64, 4, 1)  # 64 images with the same four classes
    torch.manual_seed(0)
    mask = classmix_mask(label)
    chosen = mask[:, 0]
    assert chosen.sum(1).eq(2).all()
    assert chosen.any(0).all()
    assert len({tuple(row) for row in chosen.tolist()}) == 6, 'all pairs of four classes'


def test_classmix_mask_without_any_class_is_empty():
    label = torch.full((2, 3, 3), 255)
    assert not classmix_mask(label).any()
    assert not classmix_mask(label, round_up=True).any()
    assert not classmix_mask(torch.zeros(2, 3, 3, dtype=torch.long)).any(), 'half of one is none'
    assert classmix_mask(torch.zeros(2, 3, 3, dtype=torch.long), round_up=True).all()
    assert not classmix_mask(torch.full((1, 2, 2), -1), round_up=True).any()


@FEW
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    boxes=st.sampled_from(['area', 'beta']),
    seed=st.integers(0, 1000),
)
def test_boxes_lie_inside_the_image(size, boxes, seed):
    torch.manual_seed(seed)
    # Every aspect has to fit for images that are much longer than wide.
    box = cutmix_boxes(16, size, boxes, area=(0.02, 0.3), aspect=(0.1, 10.0))
    top, left, bottom, right = box.unbind(1)
    assert box.shape == (16, 4) and box.dtype == torch.long
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= size[0]).all() and (right <= size[1]).all()
    assert (bottom >= top).all() and (right >= left).all()
    outside = (~cutmix_mask(box, size)).sum((1, 2))
    assert torch.equal(outside, (bottom - top) * (right - left))


def test_area_boxes_follow_the_published_rejection_sampling():
    """Compare the first moments with boxes drawn by rejection, one at a time."""
    torch.manual_seed(0)
    side, num = 200, 4000
    box = cutmix_boxes(num, (side, side)).double()
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


def test_beta_boxes_follow_the_published_formula():
    torch.manual_seed(0)
    box = cutmix_boxes(4000, (160, 320), 'beta').double()
    free = (box[:, 0] > 0) & (box[:, 1] > 0) & (box[:, 2] < 160) & (box[:, 3] < 320)
    share = (box[free, 2] - box[free, 0]) / 160
    torch.testing.assert_close(share, (box[free, 3] - box[free, 1]) / 320, atol=0.02, rtol=0)
    assert 0.9 < (box[:, 2] - box[:, 0]).max() / 160 <= 1


def test_beta_boxes_are_centered_beyond_an_eighth_of_each_side():
    torch.manual_seed(0)
    # So large a parameter leaves no spread: l = 1/2, sides of 113 and 226.
    box = cutmix_boxes(4000, (160, 320), 'beta', beta=1e7)
    assert box[:, 2].min() == 160 // 8 + 113 // 2
    assert box[:, 3].min() == 320 // 8 + 226 // 2
    assert box[:, 0].max() == 159 - 113 // 2


def test_cutmix_mask_is_false_inside():
    mask = cutmix_mask(torch.tensor([[1, 2, 3, 5], [0, 0, 0, 0]]), (4, 6))
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[1:3, 2:5] = False
    assert torch.equal(mask[0], expected)
    assert mask[1].all()


@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
def test_probability_is_per_image(prob):
    tensors = aligned(64, 16, 16)
    torch.manual_seed(0)
    for mixed in (cutmix(tensors, prob=prob), classmix(tensors, tensors[1], prob=prob)):
        share = (~mixed.mask).flatten(1).any(1).float().mean()
        assert share == pytest.approx(prob, abs=0.15 if prob == 0.5 else 0)


def test_partners():
    for seed in range(20):
        torch.manual_seed(seed)
        for num in range(2, 7):
            partner = mix_partners(num)
            assert (partner != torch.arange(num)).all()
            assert sorted(partner.tolist()) == list(range(num))
    assert mix_partners(4, 'flip').tolist() == [3, 2, 1, 0]
    torch.manual_seed(0)
    shuffled = {tuple(mix_partners(3, 'shuffle').tolist()) for _ in range(200)}
    assert len(shuffled) == 6
    for mode in ('cycle', 'shuffle', 'flip'):
        assert mix_partners(1, mode).tolist() == [0]
        assert mix_partners(0, mode).tolist() == []


@pytest.mark.parametrize('which', range(5))
def test_a_single_image_is_left_as_it_is(which):
    tensors = aligned(1, 8, 8)
    mixed = modules()[which](*tensors, label=tensors[1])
    for before, after in zip(tensors, mixed.tensors):
        assert torch.equal(before, after)


def test_built_from_config():
    module = MODELS.build(dict(type='mmdmt.CutMix', prob=1.0, boxes='beta'))
    assert isinstance(module, CutMix) and module.settings['boxes'] == 'beta'
    assert isinstance(MODELS.build(dict(type='mmdmt.ClassMix')), ClassMix)


def test_reads_nothing_back_from_the_device():
    """A tensor on the meta device has no values, so any read of one raises."""
    tensors = [tensor.to('meta') for tensor in aligned(4, 12, 10)]
    for module in modules():
        mixed = module(*tensors, label=tensors[1], valid=tensors[3])
        assert mixed.tensors[0].shape == tensors[0].shape


def test_refuses_misaligned_tensors():
    image, label, _, _ = aligned(2, 8, 8)
    with pytest.raises(ValueError, match='one N, H, W'):
        cutmix([image, label[:, 1:]])
    with pytest.raises(ValueError, match='one N, H, W'):
        classmix([image], label[:1])
    with pytest.raises(ValueError, match='does not fit'):
        mix(torch.ones(2, 4, 4, dtype=torch.bool), torch.arange(2), image)
    with pytest.raises(ValueError, match='at least one'):
        CutMix()()


def test_refuses_bad_arguments():
    with pytest.raises(ValueError, match='label='):
        ClassMix()(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match='no box'):
        cutmix_boxes(4, (10, 10), area=(0.9, 0.9), aspect=(3.0, 3.3))
    with pytest.raises(ValueError, match='partner'):
        mix_partners(3, 'random')
    with pytest.raises(ValueError, match='boxes'):
        cutmix_boxes(3, (8, 8), 'round')
    for arguments in (
        dict(prob=1.5),
        dict(boxes='round'),
        dict(partner='random'),
        dict(area=(0.5, 0.2)),
        dict(aspect=(0.0, 1.0)),
        dict(beta=0.0),
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            CutMix(**arguments)
    for arguments in (dict(prob=-0.1), dict(num_classes=0), dict(partner='random')):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            ClassMix(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize('which', range(5))
def test_cuda_agrees_with_cpu_without_waiting(which):
    tensors = aligned(4, 16, 16)
    on_device = [tensor.cuda() for tensor in tensors]
    torch.manual_seed(0)
    expected = modules()[which](*tensors, label=tensors[1], valid=tensors[3])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        torch.manual_seed(0)
        mixed = modules()[which](*on_device, label=on_device[1], valid=on_device[3])
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(mixed.mask.cpu(), expected.mask)
    for got, want in zip(mixed.tensors, expected.tensors):
        assert torch.equal(got.cpu(), want)
