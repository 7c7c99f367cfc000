"""Strong views of images that are not RGB."""

import pytest
import torch

from mmdmt.models.views import RandomIntensityAugment, StrongAugment
from mmdmt.models.views.intensity import OPERATIONS

CALM = dict(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)


def augmented(images, seed=0, **settings):
    torch.manual_seed(seed)
    return StrongAugment(**settings)(images)


def images(bands=5):
    torch.manual_seed(7)
    return torch.rand(3, bands, 12, 14)


@pytest.mark.parametrize('style', ['pil', 'hsv'])
def test_color_acts_on_rgb_bands_as_on_an_rgb_image(style):
    image = images()
    # Neither brightness nor contrast, which have other means with other bands.
    settings = dict(
        color_jitter=(0, 0, 0.5, 0.25),
        jitter_prob=1.0,
        gray_prob=0.5,
        blur_prob=1.0,
        jitter_style=style,
    )
    if style == 'hsv':
        settings['color_jitter'] = (0, 0, 0.5, 0.25)
    bands = (4, 2, 0)
    got = augmented(image, rgb_bands=bands, **settings)
    rgb = augmented(image[:, list(bands)], **settings)
    torch.testing.assert_close(got[:, list(bands)], rgb)
    plain = augmented(image[:, [1, 3]], **dict(settings, gray_prob=0.0))
    torch.testing.assert_close(got[:, [1, 3]], plain)


def test_without_rgb_bands_there_is_no_color():
    image = images()
    settings = dict(color_jitter=(0, 0, 0.9, 0.5), jitter_prob=1.0, gray_prob=1.0, blur_prob=0.0)
    torch.testing.assert_close(augmented(image, **settings), image)
    three = images(3)
    torch.testing.assert_close(augmented(three, rgb_bands=(), **settings), three)
    assert not torch.allclose(augmented(three, **settings), three)


def test_contrast_blends_each_band_with_its_own_mean():
    image = images(2)
    image[:, 1] = 0.2 + 0.1 * image[:, 1]
    valid = torch.ones(3, 12, 14, dtype=torch.bool)
    valid[:, :, 10:] = False
    image[:, :, :, 10:] = 0.9
    torch.manual_seed(0)
    augment = StrongAugment(color_jitter=(0, 0.5, 0, 0), jitter_prob=1.0, gray_prob=0, blur_prob=0)
    got = augment(image, valid)
    torch.manual_seed(0)
    factor = augment.draw(3).factors[:, 1].view(-1, 1, 1, 1)
    mean = image[..., :10].mean((2, 3), keepdim=True)
    expected = (mean + factor * (image - mean)).clamp(0, 1)
    torch.testing.assert_close(got[..., :10], expected[..., :10])
    assert torch.equal(got[..., 10:], image[..., 10:])


def test_noise_is_drawn_per_band_and_repeated_by_the_seed():
    image = torch.full((2, 4, 60, 60), 0.5)
    settings = dict(noise=0.1, **dict(CALM, jitter_prob=1.0), color_jitter=(0, 0, 0, 0))
    got = augmented(image, **settings)
    torch.testing.assert_close(got.std((2, 3)), torch.full((2, 4), 0.1), atol=0.01, rtol=0)
    flat = (got - 0.5).permute(1, 0, 2, 3).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.1
    assert torch.equal(got, augmented(image, **settings))
    assert not torch.equal(got, augmented(image, seed=1, **settings))
    assert torch.equal(augmented(image, **dict(settings, jitter_prob=0.0)), image)


@pytest.mark.parametrize('bands', [1, 2, 4, 13])
@pytest.mark.parametrize('kind', [StrongAugment, RandomIntensityAugment])
def test_any_number_of_bands(kind, bands):
    image, valid = images(bands), torch.ones(3, 12, 14, dtype=torch.bool)
    valid[:, 8:] = False
    for seed in range(4):
        torch.manual_seed(seed)
        got = kind()(image, valid)
        assert got.shape == image.shape
        assert got.isfinite().all()
        assert torch.equal(got[:, :, 8:], image[:, :, 8:])
        assert not torch.equal(got, image)


@pytest.mark.parametrize('operation', ['color', 'hue', 'contrast'])
def test_random_intensity_on_rgb_bands(operation):
    image, bands = images(), (4, 2, 0)
    augment = RandomIntensityAugment(1, [operation], rgb_bands=bands)
    torch.manual_seed(0)
    got = augment(image)
    if operation == 'contrast':
        assert not torch.allclose(got[:, 1], image[:, 1])
        return
    torch.manual_seed(0)
    rgb = RandomIntensityAugment(1, [operation])(image[:, list(bands)])
    torch.testing.assert_close(got[:, list(bands)], rgb)
    assert torch.equal(got[:, [1, 3]], image[:, [1, 3]])
    assert operation in OPERATIONS


@pytest.mark.parametrize('rgb_bands', [(0, 1), (0, 1, 1), (-1, 0, 1)])
def test_bad_bands(rgb_bands):
    with pytest.raises(ValueError, match='rgb_bands'):
        StrongAugment(rgb_bands=rgb_bands)


def test_bands_that_images_lack():
    with pytest.raises(ValueError, match='images have 2 channels'):
        StrongAugment(rgb_bands=(0, 1, 2))(images(2))
