import pytest
import torch
from mmengine.registry import DefaultScope

from mmdmt.models.decode_heads import DPTHead
from mmdmt.models.forward import has_joint_forward
from mmdmt.models.methods.networks import build_segmentor


def build(**settings):
    options = dict(in_channels=12, channels=8, project_channels=(4, 6, 8, 10), num_classes=5)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DPTHead(**dict(options, **settings))


@pytest.mark.parametrize('grid, patch', [((5, 5), 14), ((3, 7), 14), ((4, 6), 16), ((1, 2), 14)])
def test_there_are_as_many_logits_as_pixels(grid, patch):
    head = build(patch_size=patch)
    logits = head([torch.randn(2, 12, *grid) for _ in range(4)])
    assert list(logits.shape) == [2, 5, patch * grid[0], patch * grid[1]]


def test_published_sizes():
    """10.9 million parameters with the encoder ViT-B, as published, less the unused unit."""
    head = build(
        in_channels=768, channels=128, project_channels=(96, 192, 384, 768), num_classes=21
    )
    unused = 2 * (128 * 128 * 9 + 128)
    count = sum(parameter.numel() for parameter in head.parameters()) + unused
    assert round(count / 1e6, 1) == 10.9


def test_every_parameter_learns_and_no_statistics_are_kept():
    head = build()
    head([torch.randn(2, 12, 4, 4) for _ in range(4)]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert list(head.buffers()) == []


def test_four_maps_are_needed():
    with pytest.raises(ValueError, match='DPTHead takes four maps'):
        build(project_channels=(4, 6, 8))


def test_with_an_encoder_it_is_an_ordinary_segmentor():
    encoder = dict(
        type='mmdmt.TIMMVisionTransformer',
        model_name='vit_small_patch14_dinov2',
        pretrained=False,
        embed_dim=12,
        depth=4,
        num_heads=2,
        out_indices=(0, 1, 2, 3),
        img_size=70,
    )
    head = dict(
        type='mmdmt.DPTHead',
        in_channels=12,
        channels=8,
        project_channels=(4, 6, 8, 10),
        num_classes=5,
    )
    cfg = dict(
        type='EncoderDecoder', backbone=encoder, decode_head=head, test_cfg=dict(mode='whole')
    )
    segmentor = build_segmentor(cfg)
    assert has_joint_forward(segmentor)
    images = torch.randn(1, 3, 50, 61)
    meta = dict(img_shape=(50, 61), ori_shape=(50, 61))
    assert list(segmentor.encode_decode(images, [meta]).shape) == [1, 5, 50, 61]
