"""Normalization of any number of bands, and their way to strong views and back."""

import numpy as np
import pytest
import torch
from mmseg.structures import SegDataSample
from tiny_models import labeled_samples

from mmdmt.models.data_preprocessor import PaddingPreprocessor, SemiDataPreprocessor

MEAN, STD = [100.0, 200.0, 3000.0, 0.5, 7.0], [10.0, 20.0, 300.0, 0.1, 2.0]
LOW, HIGH = [0.0, -50.0, 0.0, 0.0, 1.0], [200.0, 500.0, 9000.0, 1.0, 11.0]


def batch(size=(8, 9)):
    rng = np.random.default_rng(0)
    low, high = (np.array(each)[:, None, None] for each in (LOW, HIGH))
    images = [
        torch.from_numpy((low + rng.random((5, *size)) * (high - low)).astype(np.float32))
        for _ in range(3)
    ]
    samples = [*labeled_samples(torch.zeros(1, *size)), SegDataSample(), SegDataSample()]
    return dict(inputs=images, data_samples=samples)


def column(values):
    return torch.tensor(values).view(-1, 1, 1)


@pytest.mark.parametrize('padding', ['mean', 'black'])
def test_bands_are_normalized_and_scaled(padding):
    data = batch()
    images = torch.stack(data['inputs'])
    preprocessor = SemiDataPreprocessor(
        mean=MEAN, std=STD, value_range=(LOW, HIGH), size=(10, 12), bgr_to_rgb=True, padding=padding
    )
    out = preprocessor(data, training=True)['inputs']
    normal = (images - column(MEAN)) / column(STD)
    torch.testing.assert_close(out['sup'][..., :8, :9], normal[:1])
    torch.testing.assert_close(out['unsup_weak'][..., :8, :9], normal[1:])
    outside = (-column(MEAN) / column(STD)) if padding == 'black' else torch.zeros(5, 1, 1)
    torch.testing.assert_close(out['sup'][..., 8:, :], outside.expand(1, 5, 2, 12))
    unit = (images[1:] - column(LOW)) / (column(HIGH) - column(LOW))
    torch.testing.assert_close(out['unsup_rgb'][..., :8, :9], unit)
    back = preprocessor.normalize(out['unsup_rgb'][..., :8, :9])
    torch.testing.assert_close(back, normal[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(preprocessor.denormalize(back), unit, atol=1e-5, rtol=1e-4)


def test_what_lies_beyond_the_range_is_cut_off_for_strong_views_alone():
    data = batch()
    data['inputs'][2][0, 0, 0] = 1e4
    preprocessor = SemiDataPreprocessor(mean=MEAN, std=STD, value_range=(LOW, HIGH), size_divisor=1)
    out = preprocessor(data, training=True)['inputs']
    assert out['unsup_rgb'].max() == 1
    assert out['unsup_weak'][1, 0, 0, 0] == (1e4 - 100) / 10


@pytest.mark.parametrize('flags', [dict(bgr_to_rgb=True), dict(rgb_to_bgr=True), {}])
def test_a_range_of_three_channels_keeps_their_order(flags):
    images = [torch.rand(3, 4, 4) * 1000 for _ in range(2)]
    low, high = [0.0, 100.0, 200.0], [1000.0, 1100.0, 1200.0]  # in the order of loading
    arguments = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], size_divisor=1, **flags)
    preprocessor = SemiDataPreprocessor(value_range=(low, high), **arguments)
    samples = [SegDataSample(), SegDataSample()]
    out = preprocessor(dict(inputs=images, data_samples=samples), training=True)['inputs']
    unit = ((torch.stack(images) - column(low)) / 1000).clamp(0, 1)
    expected = unit if 'rgb_to_bgr' in flags else unit.flip(1)
    torch.testing.assert_close(out['unsup_rgb'], expected)
    inside = (unit > 0) & (unit < 1)
    inside = inside.flip(1) if flags else inside
    back = preprocessor.normalize(out['unsup_rgb'])
    torch.testing.assert_close(back[inside], out['unsup_weak'][inside], atol=1e-4, rtol=1e-4)


def test_other_numbers_of_channels_are_refused():
    for training in (True, False):
        for kind in (SemiDataPreprocessor, PaddingPreprocessor):
            preprocessor = kind(mean=MEAN[:4], std=STD[:4], size_divisor=1)
            with pytest.raises(ValueError, match=r'\[5\] channels, .* has 4 values'):
                preprocessor(batch(), training)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(std=STD[:2]), 'std'),
        (dict(std=[0.0] * 5), 'std'),
        (dict(value_range=(1, 1)), 'value_range'),
        (dict(value_range=(LOW, HIGH[:2])), 'value_range'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PaddingPreprocessor(**dict(dict(mean=MEAN, std=STD, size_divisor=1), **settings))
