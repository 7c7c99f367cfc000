import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample

import mmdmt  # noqa: F401
from mmdmt.models.decode_heads import DeepLabV2Head

DILATIONS = (6, 12, 18, 24)


def make_head(**kwargs):
    torch.manual_seed(0)
    head = DeepLabV2Head(in_channels=5, num_classes=3, align_corners=True, **kwargs)
    head.init_weights()
    for conv in head.conv_seg:  # so that the biases count
        torch.nn.init.normal_(conv.bias)
    return head


def reference(head, x, num_summed):
    """The published sum, written with functional convolutions on a zero-padded map."""
    total = 0
    for dilation, conv in list(zip(DILATIONS, head.conv_seg))[:num_summed]:
        padded = F.pad(x, [dilation] * 4)
        total = total + F.conv2d(padded, conv.weight, conv.bias, dilation=dilation)
    return total


@pytest.mark.parametrize('num_summed', [None, 4, 2, 1])
def test_logits_are_the_sum_of_the_first_convolutions(num_summed):
    head = make_head(num_summed=num_summed)
    x = torch.randn(2, 5, 33, 29)
    expected = reference(head, x, num_summed or 4)
    torch.testing.assert_close(head([torch.zeros(1), x]), expected, rtol=1e-5, atol=1e-5)


def test_one_pixel_by_hand():
    head = make_head(num_summed=2)
    x = torch.zeros(1, 5, 40, 40)
    x[0, 2, 20 + 6, 20] = 1.0  # below the center tap of dilation 6
    x[0, 1, 20, 20 - 12] = 10.0  # left of the center tap of dilation 12
    x[0, 1, 20, 20 + 18] = 100.0  # seen by dilation 18 alone, which is not summed
    first, second = head.conv_seg[0], head.conv_seg[1]
    expected = first.bias + second.bias + first.weight[:, 2, 2, 1] + 10 * second.weight[:, 1, 1, 0]
    torch.testing.assert_close(head([x])[0, :, 20, 20], expected)


def test_unused_convolutions_are_kept_frozen_and_without_gradient():
    head = make_head(num_summed=2)
    head([torch.randn(2, 5, 16, 16)]).sum().backward()
    assert len(head.conv_seg) == 4
    for i, conv in enumerate(head.conv_seg):
        for parameter in conv.parameters():
            assert parameter.requires_grad == (i < 2)
            assert (parameter.grad is not None) == (i < 2)


def test_every_trainable_parameter_gets_a_gradient():
    head = make_head()
    head([torch.randn(2, 5, 60, 60)]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_parameters_are_those_of_the_published_file():
    head = make_head(num_summed=2)
    expected = {f'conv_seg.{i}.{name}' for i in range(4) for name in ('weight', 'bias')}
    assert set(head.state_dict()) == expected
    published = {f'layer5.conv2d_list.{i}': i for i in range(4)}
    weights = {
        f'conv_seg.{i}.{name}': torch.randn_like(getattr(head.conv_seg[i], name))
        for i in published.values()
        for name in ('weight', 'bias')
    }
    head.load_state_dict(weights, strict=True)
    x = torch.randn(1, 5, 20, 20)
    torch.testing.assert_close(head([x]), reference(head, x, 2), rtol=1e-5, atol=1e-4)


def test_initialization_is_normal_with_std_001():
    head = DeepLabV2Head(in_channels=256, num_classes=21)
    head.init_weights()
    for conv in head.conv_seg:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert conv.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
        assert conv.bias.abs().max().item() == 0.0


def test_published_dmt_starts_from_what_torch_initializes():
    head = DeepLabV2Head(in_channels=2048, num_classes=21, init_cfg=None)
    head.init_weights()
    for conv in head.conv_seg:  # uniform to both sides of 1 / sqrt(fan in)
        assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 9 * 2048), rel=0.01)
        assert 0 < conv.bias.abs().max().item() <= 1 / math.sqrt(9 * 2048)


def test_the_input_of_the_classifier_is_the_backbone_feature():
    head = make_head()
    seen = []
    head.conv_seg.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    feature = torch.randn(1, 5, 8, 8)
    head([feature])
    assert len(seen) == 1
    assert torch.equal(seen[0], feature)
    assert seen[0].shape[1] == head.channels == head.in_channels


def test_align_corners_is_used_in_the_prediction():
    metas = [dict(img_shape=(15, 15))]
    logits = torch.randn(1, 3, 8, 8)
    aligned = make_head().predict_by_feat(logits, metas)
    expected = F.interpolate(logits, size=(15, 15), mode='bilinear', align_corners=True)
    torch.testing.assert_close(aligned, expected)
    torch.testing.assert_close(aligned[..., ::2, ::2], logits)


def test_dropout_is_off_by_default_and_can_be_set():
    assert make_head().dropout is None
    x = torch.randn(1, 5, 8, 8)
    head = make_head(dropout_ratio=0.9)
    assert not torch.equal(head([x]), reference(head, x, 4))


@pytest.mark.parametrize('num_summed', [0, 5, -1])
def test_num_summed_out_of_range_is_refused(num_summed):
    with pytest.raises(ValueError, match=rf'`num_summed` must be in 1\.\.4.*got {num_summed}'):
        DeepLabV2Head(in_channels=5, num_classes=3, num_summed=num_summed)


def test_several_feature_maps_are_refused():
    with pytest.raises(TypeError, match='`in_channels` must be an int'):
        DeepLabV2Head(
            in_channels=[5, 5],
            in_index=[0, 1],
            input_transform='resize_concat',
            num_classes=3,
        )


def test_works_in_an_ordinary_segmentor():
    model = EncoderDecoder(
        backbone=dict(
            type='mmseg.ResNet',
            depth=18,
            num_stages=1,
            strides=(1,),
            dilations=(1,),
            out_indices=(0,),
        ),
        decode_head=dict(
            type='mmdmt.DeepLabV2Head',
            in_channels=64,
            in_index=0,
            num_classes=3,
            dilations=(1, 2),
            align_corners=True,
            loss_decode=dict(type='mmseg.CrossEntropyLoss', avg_non_ignore=True),
        ),
        test_cfg=ConfigDict(mode='whole'),
    )
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 32, 32))))
    images = torch.randn(1, 3, 32, 32)
    losses = model(images, [sample], mode='loss')
    losses['decode.loss_ce'].backward()
    assert torch.isfinite(losses['decode.loss_ce'])
    model.eval()
    prediction = model(images, mode='predict')[0].pred_sem_seg.data
    assert prediction.shape == (1, 32, 32)
