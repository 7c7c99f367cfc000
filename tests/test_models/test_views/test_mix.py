import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_gpu import NoWaiting

from mmdmt.models.forward import Targets
from mmdmt.models.views import BOXES, PARTNERS, ClassMix, CutMix, Mixing
from mmdmt.registry import MODELS

FEW = settings(max_examples=40, deadline=None)
SHAPES = st.tuples(st.integers(1, 5), st.integers(6, 20), st.integers(6, 20))
VIEWS = [
    dict(type='mmdmt.CutMix', aspect=(0.3, 3.3)),
    *[dict(type='mmdmt.CutMix', prob=1.0, boxes=kind) for kind in sorted(BOXES) if kind != 'area'],
    *[dict(type='mmdmt.CutMix', prob=1.0, boxes='half', partner=mode) for mode in PARTNERS],
    dict(type='mmdmt.ClassMix'),
    dict(type='mmdmt.ClassMix', prob=0.5, round_up=True, partner='shuffle'),
]
views = pytest.mark.parametrize('view', VIEWS, ids=lambda view: '-'.join(map(str, view.values())))


def aligned(num, height, width, num_classes=6, seed=0):
    """Images and targets in which every pixel of every image is told apart by its value."""
    generator = torch.Generator().manual_seed(seed)
    code = torch.arange(num * height * width).view(num, height, width)
    image = torch.stack([code.float(), code.float() / 7, -code.float()], dim=1)
    label = torch.randint(0, num_classes, (num, height, width), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    confidence = torch.rand(num, height, width, generator=generator)
    valid = torch.rand(num, height, width, generator=generator) < 0.8
    return image, Targets(label, confidence, valid)


@pytest.mark.parametrize('view', ['mmdmt.CutMix', 'mmdmt.ClassMix'])
def test_a_batch_of_one_image_is_not_mixed_and_that_is_said(view):
    images, targets = aligned(1, 8, 8)
    for partner in ('cycle', 'next', 'flip', 'shuffle'):
        mix = MODELS.build(dict(type=view, prob=1.0, partner=partner))
        with pytest.warns(
            UserWarning, match=f"Mix.partner`='{partner}' mixes with itself.*batch_size"
        ):
            mixed, _ = mix(images, targets)
        assert torch.equal(mixed, images)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MODELS.build(dict(type=view, prob=1.0, partner='same'))(images, targets)
        MODELS.build(dict(type=view, prob=0.0))(images, targets)
        MODELS.build(dict(type=view, prob=1.0, partner='flip'))(*aligned(2, 8, 8))


def test_images_of_one_class_are_exchanged_whole_by_classmix():
    """Half of one class is none, as in many images of a binary task: no class is cut in two."""
    images, targets = aligned(3, 8, 8)
    label = torch.tensor([0, 1, 1]).view(3, 1, 1).expand(3, 8, 8)
    targets = Targets(label, targets.confidence, torch.ones_like(targets.valid))
    mixed, found = ClassMix(partner='next')(images, targets)
    for before, after in zip((images, *targets), (mixed, *found)):
        assert torch.equal(after, before[[1, 2, 0]])
    mixed, found = ClassMix(partner='next', round_up=True)(images, targets)
    assert torch.equal(mixed, images) and torch.equal(found.label, label)


@FEW
@given(shape=SHAPES, seed=st.integers(0, 1000), view=st.sampled_from(VIEWS))
def test_every_pixel_comes_whole_from_one_of_two_images(shape, seed, view):
    images, targets = aligned(*shape, seed=seed)
    torch.manual_seed(seed)
    mixing = MODELS.build(view).draw(targets)
    assert sorted(mixing.partner.tolist()) == list(range(shape[0]))
    code = mixing(images)[0][:, 0].long()
    image_index, pixel = code // (shape[1] * shape[2]), code % (shape[1] * shape[2])
    own = torch.arange(shape[0]).view(-1, 1, 1).expand_as(code)
    # Same place, and from the image itself or from its partner, according to the mask.
    assert torch.equal(pixel, torch.arange(shape[1] * shape[2]).view(1, *shape[1:]).expand(shape))
    assert torch.equal(image_index, torch.where(mixing.mask, own, mixing.partner[own]))
    # Whatever is carried along comes bit-equal from the very same pixel.
    before = (images, *targets)
    for tensor, after in zip(before, mixing(*before)):
        assert after.dtype == tensor.dtype and after.shape == tensor.shape
        flat = tensor.movedim(1, -1) if tensor.ndim == 4 else tensor
        flat = flat.reshape(shape[0] * shape[1] * shape[2], -1)
        got = after.movedim(1, -1) if after.ndim == 4 else after
        assert torch.equal(got.reshape(code.numel(), -1), flat[code.flatten()])


@views
def test_the_seed_decides_and_targets_stay_on_their_pixels(view):
    images, targets = aligned(4, 12, 10)
    view = MODELS.build(view)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        mixed, found = view(images, targets)
        code = mixed[:, 0].long()
        for name, tensor in targets._asdict().items():
            assert torch.equal(getattr(found, name), tensor.flatten()[code]), name
        results.append(mixed)
    assert torch.equal(*results)


@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('kind', [CutMix, ClassMix])
def test_probability_is_per_image(prob, kind):
    torch.manual_seed(0)
    mixing = kind(prob=prob).draw(aligned(64, 16, 16)[1])
    share = (~mixing.mask).flatten(1).any(1).float().mean()
    assert share == pytest.approx(prob, abs=0.15 if prob == 0.5 else 0)


@views
def test_a_single_image_is_left_as_it_is(view):
    images, targets = aligned(1, 8, 8)
    mixed, found = MODELS.build(view)(images, targets)
    for before, after in zip((images, *targets), (mixed, *found)):
        assert torch.equal(before, after)


@views
def test_nothing_is_read_back_from_the_device(view):
    images, targets = aligned(4, 12, 10)
    view = MODELS.build(view)
    # The draws are made on the CPU, some of them with a look at their values; the rest is not.
    mixing = view.draw(targets)
    with NoWaiting():
        mixing(images, *targets)
    # A tensor on the meta device has no values, so any read of one raises.
    on_meta = Targets(*(tensor.to('meta') for tensor in targets))
    mixed, found = view(images.to('meta'), on_meta)
    assert mixed.shape == images.shape and found.label.shape == targets.label.shape


def test_making_a_view_draws_nothing():
    torch.manual_seed(0)
    for kind in BOXES:
        CutMix(boxes=kind)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)


def test_options_reach_the_boxes():
    """CutMix-Seg has one box of half the area."""
    view = CutMix(prob=1.0, boxes='french', count=1, area=(0.5, 0.5), partner='next')
    mixing = view.draw(aligned(4, 64, 64)[1])
    share = (~mixing.mask).float().mean((1, 2))
    torch.testing.assert_close(share, torch.full((4,), 0.5), atol=0.02, rtol=0)
    assert 'french' in repr(view) and 'count' in repr(view)


def test_tensors_that_do_not_fit_are_refused():
    mixing = Mixing(torch.ones(2, 8, 8, dtype=torch.bool), torch.arange(2))
    for shape in ((2, 8, 7), (3, 8, 8), (2, 3, 7, 8), (8, 8)):
        with pytest.raises(ValueError, match='tensors to mix must be'):
            mixing(torch.zeros(shape))


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(prob=1.5), 'prob'),
        (dict(boxes='round'), 'boxes'),
        (dict(partner='random'), 'partner'),
        (dict(area=(0.5, 0.2)), 'area'),
        (dict(area=(0.5, 1.2)), 'area'),
        (dict(area=0.5), 'area'),
        (dict(aspect=(0.0, 1.0)), 'aspect'),
        (dict(boxes='beta', beta=0.0), 'beta'),
        (dict(boxes='share', share=(-0.1, 0.5)), 'share'),
        (dict(boxes='french', count=0), 'count'),
    ],
)
def test_bad_settings_of_cutmix_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f'CutMix.{named}'):
        CutMix(**arguments)


@pytest.mark.parametrize('arguments', [dict(beta=4.0), dict(boxes='half', area=(0.1, 0.2))])
def test_options_of_other_boxes_are_refused(arguments):
    with pytest.raises(ValueError, match=r"`CutMix` has unknown keys \['\w+'\]; known: .*'prob'"):
        CutMix(**arguments)


@pytest.mark.parametrize(
    'arguments', [dict(prob=-0.1), dict(num_classes=0), dict(partner='random')]
)
def test_bad_settings_of_classmix_are_refused(arguments):
    with pytest.raises(ValueError, match=f'ClassMix.{next(iter(arguments))}'):
        ClassMix(**arguments)


@pytest.mark.gpu
@views
def test_cuda_agrees_with_cpu_without_waiting(view):
    images, targets = aligned(4, 16, 16)
    on_device = Targets(*(tensor.cuda() for tensor in targets))
    view = MODELS.build(view)
    torch.manual_seed(0)
    expected, expected_targets = view(images, targets)
    images = images.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        torch.manual_seed(0)
        mixed, found = view(images, on_device)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(mixed.cpu(), expected)
    for got, want in zip(found, expected_targets):
        assert torch.equal(got.cpu(), want)
