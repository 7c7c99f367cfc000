import copy

import pytest
import timm
import torch
import torchvision
from mmpretrain.models.backbones import ResNet as PretrainResNet
from mmseg.models.backbones import HRNet, MixVisionTransformer, MobileNetV2, ResNet
from torch import nn

from mmdmt.models.stochastic_depth import (
    StochasticDepth,
    disable_drop_path,
    drop_paths,
    residual_blocks,
)


def small_resnet(depth=18):
    torch.manual_seed(0)
    return ResNet(depth, base_channels=8, stem_channels=8, norm_cfg=dict(type='BN'))


NETWORKS = {
    # 2-2-2-2 blocks, of which the first one of stages 2 to 4 changes the shape.
    'mmseg ResNet-18': (small_resnet, 5),
    # 3-4-6-3 blocks; every first one widens.
    'mmseg ResNet-50': (lambda: small_resnet(50), 12),
    'mmpretrain ResNet-18': (lambda: PretrainResNet(18), 5),
    'torchvision ResNet-18': (lambda: torchvision.models.resnet18(weights=None), 5),
    'timm ResNet-18': (lambda: timm.create_model('resnet18', pretrained=False), 5),
    'mmseg MobileNetV2': (lambda: MobileNetV2(), 10),
    'torchvision MobileNetV2': (lambda: torchvision.models.mobilenet_v2(weights=None), 10),
    'timm MobileNetV2': (lambda: timm.create_model('mobilenetv2_050', pretrained=False), 10),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_blocks_with_an_identity_shortcut_are_found(name):
    """Whatever library the network is from; every block found returns what is like its input."""
    build, count = NETWORKS[name]
    network = build()
    network.eval()
    blocks = residual_blocks(network)
    assert len(blocks) == count
    shapes = []
    for block in blocks:
        block.register_forward_hook(lambda _, args, out: shapes.append((args[0].shape, out.shape)))
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
    assert len(shapes) == count and all(before == after for before, after in shapes)


def test_blocks_of_hrnet_are_found_in_all_branches():
    def stage(*channels):
        count = len(channels)
        return dict(
            num_modules=1,
            num_branches=count,
            block='BASIC',
            num_blocks=(2,) * count,
            num_channels=channels,
        )

    extra = dict(
        stage1=stage(8), stage2=stage(8, 16), stage3=stage(8, 16, 32), stage4=stage(8, 16, 32, 64)
    )
    # Of the first stage, one of two blocks widens from the stem.
    assert len(residual_blocks(HRNet(extra))) == 1 + 4 + 6 + 8


def without(network, skipped):
    """The network with identities in place of blocks, built by hand."""
    names = {id(module): name for name, module in network.named_modules()}
    copied = copy.deepcopy(network)
    for block in skipped:
        *path, last = names[id(block)].split('.')
        parent = copied.get_submodule('.'.join(path))
        setattr(parent, last, nn.Identity())
    return copied


def test_a_sub_model_is_the_network_without_the_skipped_blocks():
    network = small_resnet()
    network.eval()  # mmseg's backbones do not return themselves
    sub_model = StochasticDepth(network, drop_rate=0.5, rule='constant')
    images = torch.randn(2, 3, 32, 32)
    whole = network(images)
    with sub_model.sampled(1) as skipped:
        found = network(images)
    assert 0 < len(skipped) < len(sub_model.blocks)
    for value, expected, full in zip(found, without(network, skipped)(images), whole):
        assert torch.equal(value, expected) and not torch.equal(value, full)
    # Afterwards it is the full network again.
    for value, expected in zip(network(images), whole):
        assert torch.equal(value, expected)


def test_the_network_is_restored_after_an_error():
    network = small_resnet()
    sub_model = StochasticDepth(network, drop_rate=0.99, rule='constant')
    with pytest.raises(RuntimeError, match='out of memory'), sub_model.sampled(0):
        raise RuntimeError('out of memory')
    assert not any('forward' in vars(module) for module in network.modules())


def test_state_dict_and_keys_stay_the_same_inside():
    network = small_resnet()
    keys = list(network.state_dict())
    with StochasticDepth(network, drop_rate=0.99).sampled(0):
        assert list(network.state_dict()) == keys


@pytest.mark.parametrize(
    ('rule', 'expected'), [('linear', [0, 0.1, 0.2, 0.3, 0.4]), ('constant', [0.4] * 5)]
)
def test_blocks_are_skipped_as_often_as_the_rule_says(rule, expected):
    sub_model = StochasticDepth(small_resnet(), drop_rate=0.4, rule=rule)
    counts = dict.fromkeys(map(id, sub_model.blocks), 0)
    for step in range(2000):
        for block in sub_model.draw(step):
            counts[id(block)] += 1
    found = torch.tensor(list(counts.values())) / 2000
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=0.05, rtol=0)


def test_draws_depend_on_the_step_alone_and_take_no_random_numbers():
    """So that all processes, which are seeded differently, skip the same blocks."""
    sub_model = StochasticDepth(small_resnet(), drop_rate=0.5, rule='constant')
    draws, following = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        draws.append([[id(block) for block in sub_model.draw(step)] for step in range(8)])
        following.append(torch.rand(1))
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(1), following[-1])
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws[0]}) > 2


def test_blocks_are_skipped_independently_of_each_other_and_of_the_last_step():
    sub_model = StochasticDepth(small_resnet(), drop_rate=0.5, rule='constant')
    skipped = torch.zeros(2001, len(sub_model.blocks))
    for step, row in enumerate(skipped):
        drawn = sub_model.draw(step)
        row.copy_(
            torch.tensor([any(block is each for each in drawn) for block in sub_model.blocks])
        )
    pairs = torch.cat([skipped[1:], skipped[:-1]], dim=1)
    correlation = torch.corrcoef(pairs.T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.1


class PreNormBlock(nn.Module):
    """A block of the user's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return x + scale * self.linear(x)


def test_blocks_of_other_classes_can_be_named():
    network = nn.Sequential(PreNormBlock(), nn.ReLU(), PreNormBlock())
    assert residual_blocks(network) == []
    with pytest.warns(UserWarning, match=r'Sequential has no residual block.*block_types'):
        StochasticDepth(network)
    sub_model = StochasticDepth(network, 0.9, 'constant', block_types=['PreNormBlock'])
    assert sub_model.blocks == [network[0], network[2]]
    x = torch.randn(3, 4)
    with sub_model.sampled(0) as skipped:
        assert len(skipped) == 2
        assert torch.equal(network(x), x.relu())


def test_a_class_that_does_not_occur_is_refused():
    with pytest.raises(ValueError, match="names \\['BotleNeck'\\]"):
        StochasticDepth(small_resnet(), block_types=['BotleNeck'])


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match='drop_rate'):
        StochasticDepth(small_resnet(), drop_rate=rate)


# ------------------------------------------------------------------------- transformers, DropPath


def mit(rate):
    return MixVisionTransformer(
        embed_dims=8,
        num_stages=2,
        num_layers=[2, 2],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[4, 2],
        out_indices=(0, 1),
        drop_path_rate=rate,
    )


def test_drop_path_is_left_to_work_by_itself():
    sub_model = StochasticDepth(mit(0.3), drop_rate=0.5)
    assert sub_model.uses_drop_path and sub_model.blocks == []
    with sub_model.sampled(0) as skipped:
        assert skipped == []
    assert not StochasticDepth(mit(0.0), drop_rate=0).uses_drop_path


@pytest.mark.parametrize(
    'build',
    [
        lambda: mit(0.5),
        lambda: timm.create_model('convnext_atto', pretrained=False, drop_path_rate=0.5),
    ],
)
def test_disabled_drop_path_makes_training_passes_equal(build):
    network = build()
    network.train()
    assert list(drop_paths(network))
    disable_drop_path(network)
    assert not list(drop_paths(network))
    images = torch.randn(1, 3, 64, 64)
    first, second = network(images), network(images)
    if isinstance(first, torch.Tensor):
        first, second = [first], [second]
    assert all(torch.equal(a, b) for a, b in zip(first, second))
