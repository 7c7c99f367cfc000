import warnings

import pytest
import torch
import torch.nn.functional as F

from mmdmt.models.backbones import TIMMVisionTransformer

TINY = dict(embed_dim=32, depth=3, num_heads=2, pretrained=False, out_indices=(0, 2))
DINOV2 = 'vit_small_patch14_dinov2'
DINOV3 = 'vit_small_patch16_dinov3'


def build(model_name=DINOV2, **settings):
    torch.manual_seed(0)
    options = dict(TINY, **settings)
    if model_name == DINOV2:
        options.setdefault('img_size', 70)
    return TIMMVisionTransformer(model_name, **options)


@pytest.mark.parametrize('model_name, patch', [(DINOV2, 14), (DINOV3, 16)])
@pytest.mark.parametrize('size', [(70, 70), (64, 80), (37, 100), (5, 16)])
def test_images_of_any_size_give_a_token_for_each_patch(model_name, patch, size):
    network = build(model_name).eval()
    maps = network(torch.randn(2, 3, *size))
    grid = [max(1, int(side / patch + 0.5)) for side in size]
    assert [list(each.shape) for each in maps] == [[2, 32, *grid]] * 2


def test_an_image_is_resized_with_aligned_corners():
    network = build().eval()
    image = torch.randn(1, 3, 66, 75)
    resized = F.interpolate(image, (70, 70), mode='bilinear', align_corners=True)
    for one, other in zip(network(image), network(resized)):
        assert torch.equal(one, other)


def test_the_final_norm_is_applied_to_every_map():
    network = build().eval()
    for each in network(torch.randn(2, 3, 70, 70)):
        torch.testing.assert_close(each.mean(1), torch.zeros_like(each[:, 0]), atol=1e-4, rtol=0)
        assert (each.var(1, unbiased=False) - 1).abs().max() < 0.01
    plain = build(norm=False).eval()
    assert all(each.mean(1).abs().max() > 1e-3 for each in plain(torch.randn(2, 3, 70, 70)))


def test_later_blocks_are_cut_off():
    assert len(build(out_indices=(0, 1)).timm_model.network.blocks) == 2


@pytest.mark.parametrize('offset', [0.1, None])
def test_the_position_embedding_follows_the_size_and_learns_at_every_size(offset):
    network = build(position_offset=offset)
    table = network.timm_model.network.pos_embed
    plain = network._position_embedding((4, 6))
    tokens = table[:, 1:].unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    how = dict(size=(4, 6)) if offset is None else dict(scale_factor=(4.1 / 5, 6.1 / 5))
    expected = F.interpolate(tokens, mode='bicubic', **how).flatten(2).transpose(1, 2)
    torch.testing.assert_close(plain[:, 1:], expected)
    assert torch.equal(plain[:, :1], table[:, :1])
    network(torch.randn(1, 3, 56, 84))[1].square().sum().backward()
    assert table.grad is not None and table.grad.abs().sum() > 0


def test_checkpointing_changes_memory_and_not_the_result():
    image = torch.randn(2, 3, 70, 70)
    grads, kept = [], []
    for with_cp in (False, True):
        network = build(with_cp=with_cp).train()
        sizes = []

        def store(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
            loss = sum((each * image.mean()).square().sum() for each in network(image))
        loss.backward()
        kept.append(sum(sizes))
        grads.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)
    assert kept[1] < kept[0] / 2


def test_the_license_of_dinov3_is_named_where_its_weights_are_used(monkeypatch):
    network = build(DINOV3).timm_model.network
    monkeypatch.setattr('timm.create_model', lambda **_: network)
    with pytest.warns(UserWarning, match='DINOv3 have a license of their own'):
        TIMMVisionTransformer(DINOV3, out_indices=(0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build(DINOV3)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="'resnet18' is no plain vision transformer"):
        TIMMVisionTransformer('resnet18', pretrained=False)
