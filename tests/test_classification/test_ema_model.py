import pytest
import torch
from torch import nn

import mmdmt.classification  # noqa: F401
from mmdmt.classification import EMAModel


def network(value):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(net[0].weight, value)
    net[1].running_mean.fill_(value)
    return net


def run(values, **settings):
    """Average after the network has had these values."""
    net = network(values[0])
    average = EMAModel(net, **settings)
    for value in values:
        nn.init.constant_(net[0].weight, value)
        net[1].running_mean.fill_(value)
        average.update_parameters(net)
    return average


def test_it_is_an_exponential_average_of_parameters_and_statistics():
    average = run([1.0, 2.0, 4.0], momentum=0.9, warmup=False)
    expected = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4
    assert average.module[0].weight.item() == pytest.approx(expected)
    assert average.module[1].running_mean.item() == pytest.approx(expected)


def test_it_starts_as_a_running_mean():
    average = run([1.0, 2.0, 6.0], momentum=0.999)
    assert average.module[0].weight.item() == pytest.approx(3.0)


def test_the_published_average_is_nearly_the_last_iterate():
    average = run([1.0, 2.0, 6.0], momentum=0.001, buffers='copy', warmup=False)
    assert average.module[0].weight.item() == pytest.approx(6.0, abs=0.01)
    assert average.module[1].running_mean.item() == 6.0


def test_it_goes_on_where_it_was_after_loading():
    whole = run([1.0, 2.0, 6.0, 3.0], momentum=0.999)
    half = run([1.0, 2.0], momentum=0.999)
    resumed = EMAModel(network(0.0), momentum=0.999)
    resumed.update_parameters(network(0.0))
    resumed.load_state_dict(half.state_dict())
    for value in (6.0, 3.0):
        resumed.update_parameters(network(value))
    assert int(resumed.steps) == int(whole.steps) == 4
    assert torch.equal(resumed.module[0].weight, whole.module[0].weight)


def test_no_gradient():
    assert not any(p.requires_grad for p in EMAModel(network(1.0)).parameters())
