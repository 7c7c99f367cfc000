import numpy as np
import pytest
import torch
from virtual_gpu import NoWaiting

from mmdmt.models.losses.entropy import masked_quantiles, pixel_entropy


def test_entropy_is_that_of_the_softmax():
    logits = torch.randn(2, 5, 3, 4) * 3
    prob = logits.softmax(1).numpy().astype(np.float64)
    expected = -(prob * np.log(prob)).sum(1)
    np.testing.assert_allclose(pixel_entropy(logits), expected, rtol=1e-4)
    even = pixel_entropy(torch.zeros(1, 5, 1, 1, dtype=torch.half))
    assert even.dtype == torch.float32 and even.item() == pytest.approx(np.log(5))
    # A probability of 0 adds nothing.
    assert pixel_entropy(torch.tensor([[500.0, -500.0]])) == 0


@pytest.mark.parametrize('count', [1, 2, 50, 300])
def test_quantiles_of_the_valid_values_are_numpys(count):
    rng = np.random.default_rng(count)
    values = rng.random((3, 10, 10)).astype(np.float32)
    mask = np.zeros(300, bool)
    mask[rng.permutation(300)[:count]] = True
    mask = mask.reshape(values.shape)
    shares = [0.0, 0.07, 0.5, 0.8, 1.0]
    with NoWaiting():
        found = masked_quantiles(torch.tensor(values), torch.tensor(mask), shares)
    expected = np.percentile(values[mask], [100 * share for share in shares])
    np.testing.assert_allclose(torch.stack(found), expected, rtol=1e-5)


def test_quantiles_take_more_values_than_torch_quantile():
    values = torch.arange(17_000_000, dtype=torch.float32)
    (found,) = masked_quantiles(values, values >= 0, [0.8])
    assert found.item() == pytest.approx(0.8 * (len(values) - 1), rel=1e-6)


def test_nothing_valid_is_no_error():
    for found in masked_quantiles(torch.rand(4), torch.zeros(4, dtype=torch.bool), [0.2, 0.8]):
        assert not (torch.rand(4) < found).isnan().any()
