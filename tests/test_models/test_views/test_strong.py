import math

import kornia
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from mmdmt.models.views import STRONG_PRESETS, StrongAugment
from mmdmt.models.views import strong as strong_module
from mmdmt.registry import MODELS

ALWAYS = dict(jitter_prob=1.0, gray_prob=0.0, blur_prob=0.0)


def rand_images(num=4, height=24, width=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(num, 3, height, width, dtype=dtype, generator=generator)


def only(**jitter):
    """Jitter that does one operation only, with a magnitude."""
    names = ('brightness', 'contrast', 'saturation', 'hue')
    return StrongAugment(color_jitter=[jitter.get(name, 0.0) for name in names], **ALWAYS)


def run(module, images, seed=0, valid=None):
    torch.manual_seed(seed)
    return module(images, valid)


def draws(module, num, seed=0):
    torch.manual_seed(seed)
    return module.draw(num)


@pytest.mark.parametrize('preset', sorted(STRONG_PRESETS))
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_range_shape_and_dtype(preset, dtype):
    images = rand_images(6, dtype=dtype)
    before = images.clone()
    out = run(StrongAugment(preset), images)
    assert out.shape == images.shape and out.dtype == dtype
    assert out.min() >= 0 and out.max() <= 1
    assert not torch.equal(out, images)
    assert torch.equal(images, before), 'the input must not be changed in place'


def test_built_from_config_with_an_override():
    module = MODELS.build(dict(type='mmdmt.StrongAugment', preset='ctt', gray_prob=0.3))
    assert module.color_jitter == (0.25,) * 4
    assert module.gray_prob == 0.3
    assert module.blur_sigma == (0.15, 1.15)
    assert not module.state_dict()


def test_zero_probability_is_the_identity():
    images = rand_images()
    module = StrongAugment(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)
    assert torch.equal(run(module, images), images)


def test_identical_images_get_different_draws():
    images = rand_images(1).repeat(4, 1, 1, 1)
    out = run(StrongAugment(jitter_prob=1.0), images)
    for i in range(4):
        for j in range(i):
            assert (out[i] - out[j]).abs().max() > 0.02


def test_images_that_are_not_chosen_stay_bit_equal():
    images = rand_images(64, 12, 12)
    module = StrongAugment(jitter_prob=0.5, gray_prob=0.0, blur_prob=0.0)
    chosen = draws(module, 64).jitter
    same = (run(module, images) == images).flatten(1).all(1)
    assert 10 < int(chosen.sum()) < 54
    assert torch.equal(same, ~chosen)


def test_an_image_does_not_depend_on_the_others():
    images = rand_images(4)
    other = images.clone()
    other[1:] = 1 - other[1:]
    module = StrongAugment(jitter_prob=1.0, blur_prob=1.0)
    torch.testing.assert_close(run(module, images)[0], run(module, other)[0])


def test_same_seed_same_result_and_fixed_number_of_draws():
    images = rand_images()
    module = StrongAugment()
    assert torch.equal(run(module, images, 5), run(module, images, 5))
    assert not torch.equal(run(module, images, 5), run(module, images, 6))
    following = []
    for probability in (0.0, 0.5, 1.0):
        module = StrongAugment(
            jitter_prob=probability, gray_prob=probability, blur_prob=probability
        )
        run(module, images, 5)
        following.append(torch.rand(1))
    assert torch.equal(following[0], following[1]) and torch.equal(following[0], following[2])


def test_draws_cover_the_published_ranges():
    module = StrongAugment('unimatch')
    drawn = draws(module, 20000)
    low, high = drawn.factors.amin(0), drawn.factors.amax(0)
    torch.testing.assert_close(low, torch.tensor([0.5, 0.5, 0.5, -0.25]), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.5, 1.5, 1.5, 0.25]), atol=1e-3, rtol=0)
    assert 0.1 <= drawn.sigma.min() < 0.11 and 1.99 < drawn.sigma.max() <= 2.0
    for chosen, probability in ((drawn.jitter, 0.8), (drawn.gray, 0.2), (drawn.blur, 0.5)):
        assert chosen.float().mean() == pytest.approx(probability, abs=0.02)


def test_factors_are_never_negative():
    module = StrongAugment(color_jitter=(2.0, 2.0, 2.0, 0.0))
    assert draws(module, 1000).factors[:, :3].min() >= 0


@pytest.mark.parametrize(
    'name, reference, tolerance',
    [
        ('brightness', tv.adjust_brightness, 1e-6),
        # torchvision's luminance weights have four digits and add up to 0.9999.
        ('contrast', tv.adjust_contrast, 2e-4),
        ('saturation', tv.adjust_saturation, 2e-4),
        ('hue', tv.adjust_hue, 1e-4),
    ],
)
def test_jitter_agrees_with_torchvision(name, reference, tolerance):
    images = rand_images()
    module = only(**{name: 0.4})
    index = ('brightness', 'contrast', 'saturation', 'hue').index(name)
    factors = draws(module, len(images)).factors[:, index].tolist()
    expected = torch.stack([reference(image, factor) for image, factor in zip(images, factors)])
    torch.testing.assert_close(run(module, images), expected, atol=tolerance, rtol=0)


def test_operations_follow_the_drawn_order():
    images = rand_images()
    module = StrongAugment(color_jitter=(0.5, 0.5, 0.5, 0.25), **ALWAYS)
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    orders = set()
    for seed in range(4):
        drawn = draws(module, len(images), seed)
        orders.add(tuple(drawn.order.tolist()))
        expected = []
        for image, factors in zip(images, drawn.factors.tolist()):
            for index in drawn.order.tolist():
                image = functions[index](image, factors[index])
            expected.append(image)
        out = run(module, images, seed)
        torch.testing.assert_close(out, torch.stack(expected), atol=2e-3, rtol=0)
    assert len(orders) > 1


def test_gray_is_the_luminance_in_all_channels():
    images = rand_images()
    out = run(StrongAugment(jitter_prob=0.0, gray_prob=1.0, blur_prob=0.0), images)
    expected = kornia.color.rgb_to_grayscale(images).expand_as(images)
    torch.testing.assert_close(out, expected)


def test_blur_uses_each_image_own_sigma():
    images = rand_images()
    module = StrongAugment(jitter_prob=0.0, gray_prob=0.0, blur_prob=1.0)
    out = run(module, images)
    for i, sigma in enumerate(draws(module, len(images)).sigma.tolist()):
        blurred = tv.gaussian_blur(images[i], [13, 13], [sigma, sigma])
        # Only the border is padded in another way.
        torch.testing.assert_close(out[i, :, 6:-6, 6:-6], blurred[:, 6:-6, 6:-6])


def test_blur_works_on_images_smaller_than_its_kernel():
    images = rand_images(2, 4, 5)
    out = run(StrongAugment(jitter_prob=0.0, gray_prob=0.0, blur_prob=1.0), images)
    assert out.shape == images.shape and torch.isfinite(out).all()


def test_padding_stays_and_has_no_influence():
    module = StrongAugment(jitter_prob=1.0, gray_prob=0.0, blur_prob=1.0)
    valid = torch.zeros(4, 24, 32, dtype=torch.bool)
    valid[:, :17, :20] = True
    black, white = rand_images(), rand_images()
    black.masked_fill_(~valid[:, None], 0.0)
    white.masked_fill_(~valid[:, None], 1.0)
    out_black, out_white = run(module, black, valid=valid), run(module, white, valid=valid)
    inside = valid[:, None].expand_as(black)
    assert torch.equal(out_black[~inside], black[~inside])
    assert torch.equal(out_white[~inside], white[~inside])
    torch.testing.assert_close(out_black[inside], out_white[inside])


def test_mask_without_padding_changes_nothing():
    images = rand_images()
    module = StrongAugment(jitter_prob=1.0, gray_prob=0.0, blur_prob=1.0)
    valid = torch.ones(4, 24, 32, dtype=torch.bool)
    torch.testing.assert_close(run(module, images, valid=valid), run(module, images))


def test_autocast_does_not_lower_the_precision():
    images = rand_images()
    module = StrongAugment(jitter_prob=1.0, gray_prob=0.0, blur_prob=1.0)
    expected = run(module, images)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(run(module, images), expected)


def test_needs_no_gradient():
    images = rand_images().requires_grad_()
    assert not run(StrongAugment(), images).requires_grad


def test_reads_nothing_back_from_the_device(monkeypatch):
    """A tensor on the meta device has no values, so any read of one raises."""
    monkeypatch.setattr(strong_module.torch, 'autocast', lambda *_, **__: torch.no_grad())
    images = rand_images().to('meta')
    valid = torch.ones(4, 24, 32, dtype=torch.bool, device='meta')
    module = StrongAugment(jitter_prob=1.0, gray_prob=1.0, blur_prob=1.0)
    assert module(images).device.type == 'meta'
    assert module(images, valid).shape == images.shape


def test_empty_batch():
    assert run(StrongAugment(), rand_images(0)).shape == (0, 3, 24, 32)


@pytest.mark.parametrize(
    'images',
    [torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4)],
)
def test_refuses_other_images(images):
    with pytest.raises(ValueError, match='float images'):
        StrongAugment()(images)


def test_refuses_a_mask_that_does_not_fit():
    with pytest.raises(ValueError, match='valid mask'):
        StrongAugment()(rand_images(), torch.ones(4, 1, 24, 32, dtype=torch.bool))


@pytest.mark.parametrize(
    'arguments, named',
    [
        (dict(preset='unknown'), 'preset'),
        (dict(jitter_prob=1.2), 'jitter_prob'),
        (dict(color_jitter=(0.5, 0.5, 0.5)), 'color_jitter'),
        (dict(color_jitter=(0.5, 0.5, 0.5, 0.6)), 'color_jitter'),
        (dict(blur_sigma=(0.0, 1.0)), 'blur_sigma'),
        (dict(blur_sigma=(2.0, 1.0)), 'blur_sigma'),
    ],
)
def test_refuses_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        StrongAugment(**arguments)


def test_hue_magnitude_is_in_turns():
    images = torch.zeros(1, 3, 2, 2)
    images[:, 0] = 1.0  # pure red
    third = kornia.enhance.adjust_hue(images, torch.tensor([2 * math.pi / 3]))
    factors = torch.tensor([[1.0, 1.0, 1.0, 1 / 3]])
    out = StrongAugment()._jitter(images, factors, torch.tensor([3, 0, 1, 2]), None)
    torch.testing.assert_close(out, third)
    assert out[0, 1].min() > 0.999 and out[0, 0].max() < 1e-3, 'red turned by a third is green'


@pytest.mark.gpu
def test_cuda_agrees_with_cpu_without_waiting():
    images = rand_images()
    valid = torch.ones(4, 24, 32, dtype=torch.bool)
    valid[:, 20:] = False
    module = StrongAugment(jitter_prob=1.0, gray_prob=0.5, blur_prob=1.0)
    expected = run(module, images, valid=valid)
    on_device, mask = images.cuda(), valid.cuda()
    module(on_device, mask)  # let cuDNN and kornia set themselves up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        out = run(module, on_device, valid=mask)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    torch.testing.assert_close(out.cpu(), expected, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------- released CTT


@pytest.mark.parametrize(
    ('name', 'amount', 'expected'),
    [
        ('brightness', 0.8, lambda images, f: images + (f - 1)),
        ('contrast', 0.5, lambda images, f: images * f),
        ('saturation', 0.5, kornia.enhance.adjust_saturation),
    ],
)
def test_the_released_jitter_of_ctt_adds_multiplies_and_scales_the_saturation(
    name, amount, expected
):
    names = ('brightness', 'contrast', 'saturation', 'hue')
    module = StrongAugment(
        color_jitter=[amount if name == other else 0.0 for other in names],
        jitter_style='hsv',
        **ALWAYS,
    )
    images = rand_images()
    factor = draws(module, 4).factors[:, names.index(name)]
    if name != 'saturation':
        factor = factor.view(-1, 1, 1, 1)
    torch.testing.assert_close(run(module, images), expected(images, factor).clamp(0, 1))


def test_a_batch_may_share_whether_and_how_much():
    module = StrongAugment('ctt_released')
    assert (module.jitter_prob, module.blur_prob, module.gray_prob) == (0.8, 0.5, 0.0)
    assert module.color_jitter == (0.25,) * 4 and module.blur_sigma == (0.15, 1.15)
    seen = {'jitter': set(), 'blur': set()}
    for seed in range(30):
        drawn = draws(module, 6, seed)
        for name, found in seen.items():
            chosen = getattr(drawn, name)
            assert chosen.all() or not chosen.any()
            found.add(bool(chosen[0]))
        assert len(drawn.sigma.unique()) == 1 and len(drawn.factors.unique()) == 24
    assert seen == {'jitter': {True, False}, 'blur': {True, False}}


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match=r"jitter_style.*'hsl'"):
        StrongAugment(jitter_style='hsl')
