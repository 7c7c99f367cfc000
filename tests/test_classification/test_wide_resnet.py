import pytest
import torch
from torch import nn

from mmdmt.classification import WideResNet


def test_wrn_28_2():
    net = WideResNet()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) == 25 and len(net.stages) == 3
    assert [len(stage) for stage in net.stages] == [4, 4, 4]
    assert [stage[-1].conv2.out_channels for stage in net.stages] == [32, 64, 128]
    # Figures of the literature for WRN-28-2 with ten classes.
    parameters = sum(p.numel() for p in net.parameters()) + 128 * 10 + 10
    assert parameters == pytest.approx(1.47e6, rel=0.005)
    (features,) = net(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 128, 8, 8) and (features >= 0).all()


def test_blocks_normalize_before_they_convolve():
    block = WideResNet(10, 1).stages[1][0]
    x = torch.randn(2, 16, 8, 8)
    active = block.relu(block.norm1(x))
    inner = block.conv2(block.relu(block.norm2(block.conv1(active))))
    torch.testing.assert_close(block(x), inner + block.shortcut(active))
    same = WideResNet(16, 1).stages[0][0]
    assert same.shortcut is None


def test_dropout_is_off_by_default():
    assert not [m for m in WideResNet().modules() if isinstance(m, nn.Dropout)]
    assert [m for m in WideResNet(10, 1, drop_rate=0.3).modules() if isinstance(m, nn.Dropout)]


def test_every_parameter_is_trained():
    net = WideResNet(10, 1)
    net.init_weights()
    net(torch.randn(2, 3, 8, 8))[0].sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('depth', [4, 27])
def test_impossible_depth_is_refused(depth):
    with pytest.raises(ValueError, match='6 n'):
        WideResNet(depth)
