import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mmdmt.models.views import RandomIntensityAugment, intensity
from mmdmt.models.views.intensity import OPERATIONS
from mmdmt.registry import MODELS


def rand_images(num=4, height=24, width=32):
    """Images of 256 levels with a limited range."""
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(20, 200, (num, 3, height, width), generator=generator)
    return levels.float() / 255


def apply(name, images, amount, valid=None):
    weight = torch.ones_like(images[:, :1]) if valid is None else valid[:, None].float()
    amounts = torch.full((len(images),), float(amount))
    return OPERATIONS[name].apply(images, amounts, weight).clamp(0, 1)


PIL_OPERATIONS = dict(
    identity=(lambda image, amount: image, 0),
    autocontrast=(lambda image, amount: ImageOps.autocontrast(image), 0),
    equalize=(lambda image, amount: ImageOps.equalize(image), 0),
    contrast=(lambda image, amount: ImageEnhance.Contrast(image).enhance(amount), 0.3),
    brightness=(lambda image, amount: ImageEnhance.Brightness(image).enhance(amount), 0.3),
    color=(lambda image, amount: ImageEnhance.Color(image).enhance(amount), 0.3),
    sharpness=(lambda image, amount: ImageEnhance.Sharpness(image).enhance(amount), 0.3),
    posterize=(lambda image, amount: ImageOps.posterize(image, int(amount)), 5.7),
    solarize=(lambda image, amount: ImageOps.solarize(image, int(amount)), 100.4),
)


@pytest.mark.parametrize('name', sorted(PIL_OPERATIONS))
def test_operations_are_those_of_pil(name):
    images = rand_images()
    operation, amount = PIL_OPERATIONS[name]
    found = apply(name, images, amount)
    for image, out in zip(images, found):
        pil = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        expected = torch.from_numpy(np.array(operation(pil, amount))).permute(2, 0, 1) / 255
        # PIL rounds at each step, down or to the nearest.
        torch.testing.assert_close(out, expected, atol=2.1 / 255, rtol=0)
    if name in ('equalize', 'posterize', 'solarize', 'identity'):
        torch.testing.assert_close(found[-1], expected, atol=1e-6, rtol=0)


def test_equalize_leaves_what_has_too_few_levels():
    flat = torch.full((1, 3, 8, 8), 0.4)
    assert torch.equal(apply('equalize', flat, 0), flat)
    assert torch.equal(apply('autocontrast', flat, 0), flat)


def test_hue_and_blur_are_in_turns_and_pixels():
    images = rand_images()
    torch.testing.assert_close(
        apply('hue', images, 0.25), tv.adjust_hue(images, 0.25), atol=1e-4, rtol=0
    )
    pil = Image.fromarray((images[0].permute(1, 2, 0) * 255).round().byte().numpy())
    expected = np.array(pil.filter(ImageFilter.GaussianBlur(1.5))) / 255
    # PIL's blur is three box blurs.
    found = apply('blur', images, 1.5)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected)[6:-6, 6:-6].max() < 0.04


@pytest.mark.parametrize('name', sorted(OPERATIONS))
def test_padding_stays_and_has_no_influence(name):
    module = RandomIntensityAugment(max_operations=2, operations=[name])
    valid = torch.zeros(4, 24, 32, dtype=torch.bool)
    valid[:, :17, :20] = True
    black, white = rand_images(), rand_images()
    black.masked_fill_(~valid[:, None], 0.0)
    white.masked_fill_(~valid[:, None], 1.0)
    torch.manual_seed(0)
    out_black = module(black, valid)
    torch.manual_seed(0)
    out_white = module(white, valid)
    inside = valid[:, None].expand_as(black)
    assert torch.equal(out_black[~inside], black[~inside])
    assert torch.equal(out_white[~inside], white[~inside])
    torch.testing.assert_close(out_black[inside], out_white[inside])
    torch.manual_seed(0)
    cut = module(rand_images()[:, :, :17, :20].contiguous())
    if name not in ('blur',):  # replicates the border where there is no padding
        torch.testing.assert_close(out_black[:, :, :17, :20], cut)


def test_the_number_of_operations_and_the_operations_are_drawn_for_each_image():
    module = RandomIntensityAugment()
    torch.manual_seed(0)
    chosen, share = module.draw(6600)
    used = (chosen >= 0).sum(1)
    counts = torch.bincount(used, minlength=4)
    assert counts[0] == 0
    assert ((counts[1:] - 2200).abs() < 150).all(), '1, 2 or 3 with the same probability'
    drawn = torch.bincount(chosen[chosen >= 0], minlength=11)
    assert len(drawn) == 11 == len(OPERATIONS)
    assert ((drawn - used.sum() / 11).abs() < 150).all()
    assert any(len(set(row.tolist())) < 3 for row in chosen[used == 3]), 'with replacement'
    assert share.min() < 0.001 and share.max() > 0.999 and share.max() < 1


def test_the_published_ranges_are_covered():
    low = {name: operation.low for name, operation in OPERATIONS.items()}
    assert (low['blur'], OPERATIONS['blur'].high) == (0.1, 2.0)
    assert (low['hue'], OPERATIONS['hue'].high) == (-0.5, 0.5)
    for name in ('contrast', 'brightness', 'color', 'sharpness'):
        assert (low[name], OPERATIONS[name].high) == (0.05, 0.95)
    almost = torch.tensor([0.0, 0.999])
    for name, first, last in (('posterize', 4, 8), ('solarize', 1, 256)):
        operation = OPERATIONS[name]
        amount = operation.low + (operation.high - operation.low) * almost
        assert amount.floor().tolist() == [first, last]


def test_an_image_goes_through_its_operations_in_turn():
    images = rand_images(32)
    module = RandomIntensityAugment()
    torch.manual_seed(1)
    chosen, share = module.draw(32)
    torch.manual_seed(1)
    found = module(images)
    names = list(OPERATIONS)
    for row in range(32):
        expected = images[row : row + 1]
        for index, where in zip(chosen[row].tolist(), share[row].tolist()):
            if index >= 0:
                operation = OPERATIONS[names[index]]
                amount = operation.low + (operation.high - operation.low) * where
                expected = apply(names[index], expected, amount)
        torch.testing.assert_close(found[row : row + 1], expected)


def test_seed_range_and_input():
    images = rand_images(16)
    before = images.clone()
    module = MODELS.build(dict(type='mmdmt.RandomIntensityAugment')).to('cpu').float()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(module(images))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert results[0].min() >= 0 and results[0].max() <= 1
    assert torch.equal(images, before), 'the input must not be changed in place'
    assert not module.state_dict()
    following = []
    for most in (['identity'], ['blur', 'hue']):
        torch.manual_seed(0)
        RandomIntensityAugment(operations=most)(images)
        following.append(torch.rand(1))
    assert torch.equal(*following)


def test_autocast_does_not_lower_the_precision():
    images = rand_images(24)
    module = RandomIntensityAugment()
    torch.manual_seed(0)
    expected = module(images)
    torch.manual_seed(0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(module(images), expected)


def test_reads_nothing_back_from_the_device(monkeypatch):
    """A tensor on the meta device has no values, so any read of one raises."""
    monkeypatch.setattr(intensity.torch, 'autocast', lambda *_, **__: torch.no_grad())
    images = rand_images(48).to('meta')
    valid = torch.ones(48, 24, 32, dtype=torch.bool, device='meta')
    module = RandomIntensityAugment()
    torch.manual_seed(0)
    assert set(module.draw(48).chosen.flatten().tolist()) == {-1, *range(11)}
    torch.manual_seed(0)
    assert module(images).device.type == 'meta'
    assert module(images, valid).shape == images.shape


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(max_operations=0), 'max_operations'),
        (dict(operations=['blurr']), "operations.*'blurr'"),
        (dict(operations=[]), 'operations'),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        RandomIntensityAugment(**settings)


def test_other_images_are_refused():
    with pytest.raises(ValueError, match='RandomIntensityAugment needs float images'):
        RandomIntensityAugment()(torch.zeros(3, 4, 4))


@pytest.mark.gpu
def test_cuda_agrees_with_cpu_without_waiting():
    images = rand_images(24)
    valid = torch.ones(24, 24, 32, dtype=torch.bool)
    valid[:, 20:] = False
    module = RandomIntensityAugment()
    torch.manual_seed(0)
    expected = module(images, valid)
    on_device, mask = images.cuda(), valid.cuda()
    torch.manual_seed(0)
    module(on_device, mask)
    torch.cuda.synchronize()
    torch.manual_seed(0)
    torch.cuda.set_sync_debug_mode('error')
    try:
        found = module(on_device, mask)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    # A level may fall to the other side of a threshold, so a few pixels may differ.
    assert ((found.cpu() - expected).abs() > 1e-3).float().mean() < 0.01
