import copy

import pytest
import torch
from torch import nn

from mmdmt.models.modes import in_mode, untracked_statistics


def test_a_mode_lasts_for_the_block_and_every_module_gets_its_own_back():
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    network[0].eval()
    before = copy.deepcopy(network.state_dict())
    for training in (True, False):
        with pytest.raises(RuntimeError, match='out of memory'), in_mode(network, training):
            assert {module.training for module in network.modules()} == {training}
            network(torch.randn(4, 3, 8, 8))
            raise RuntimeError('out of memory')
        assert [module.training for module in network.modules()] == [True, False, True]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_untracked_statistics_normalize_by_the_batch_and_stay(norm):
    layer = norm(3)
    layer.running_mean.fill_(5.0)
    network = nn.Sequential(layer).train()
    images = torch.randn(4, 3, 8, 8)
    before = copy.deepcopy(layer.state_dict())
    with untracked_statistics(network):
        assert not layer.track_running_stats
        if norm is nn.BatchNorm2d:  # the other one runs on GPUs only
            expected = nn.BatchNorm2d(3)(images)
            torch.testing.assert_close(network(images), expected)
    assert layer.track_running_stats
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


def test_layers_in_eval_mode_keep_using_their_statistics():
    layer = nn.BatchNorm2d(3).eval()
    layer.running_mean.fill_(5.0)
    images = torch.randn(4, 3, 8, 8)
    with untracked_statistics(layer):
        torch.testing.assert_close(layer(images), images - 5.0, atol=1e-4, rtol=1e-4)


def test_statistics_may_be_tracked():
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    with in_mode(network, training=True, tracked=True):
        network(torch.randn(4, 3, 8, 8) + 5)
    assert (network[0].running_mean > 0.4).all() and not network[0].training
