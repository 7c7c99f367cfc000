import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from tiny_models import tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.losses.contrast.feature_tap import FeatureTap, feature_channels, find_classifier
from mmdmt.models.methods.networks import build_segmentor

COMMON = dict(
    num_classes=4,
    norm_cfg=dict(type='BN'),
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
)
PYRAMID = dict(in_channels=[8, 16], in_index=[0, 1], channels=8)
#: Heads, and the channels of the last feature before their classifier.
HEADS = {
    'deeplabv2': (dict(type='mmdmt.DeepLabV2Head', in_channels=16, in_index=1), 16),
    'deeplabv3plus': (
        dict(
            type='DepthwiseSeparableASPPHead',
            in_channels=16,
            in_index=1,
            channels=12,
            dilations=(1, 2),
            c1_in_channels=8,
            c1_channels=4,
        ),
        12,
    ),
    'segformer': (dict(type='SegformerHead', **PYRAMID), 8),
    'upernet': (dict(type='UPerHead', pool_scales=(1, 2), **PYRAMID), 8),
    'fcn': (dict(type='FCNHead', in_channels=16, in_index=1, channels=6, num_convs=1), 6),
    'psp': (dict(type='PSPHead', in_channels=16, in_index=1, channels=6, pool_scales=(1,)), 6),
    'da': (dict(type='DAHead', in_channels=16, in_index=1, channels=6, pam_channels=4), 6),
}


def build(head, **changes):
    cfg = tiny_segmentor()
    cfg['decode_head'] = dict(COMMON, **copy.deepcopy(head), **changes)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return build_segmentor(cfg)


@pytest.mark.parametrize('name', HEADS)
def test_classifying_the_feature_gives_the_logits(name):
    head, channels = HEADS[name]
    model = build(head).eval()
    images = torch.randn(3, 3, 64, 64)
    expected = dense_logits(model, images)
    with FeatureTap(model) as tap:
        assert torch.equal(dense_logits(model, images), expected), 'the tap changes the network'
    assert tap.features.shape[:2] == (3, channels)
    assert feature_channels(find_classifier(model)) == channels
    torch.testing.assert_close(model.decode_head.conv_seg(tap.features), tap.logits)


def test_nothing_is_recorded_outside_the_block():
    model = build(HEADS['fcn'][0])
    with FeatureTap(model) as tap:
        dense_logits(model, torch.randn(2, 3, 32, 32))
    dense_logits(model, torch.randn(5, 3, 32, 32))
    assert len(tap.features) == 2
    assert not model.decode_head.conv_seg._forward_hooks


def test_several_calls_are_stacked_in_their_order():
    model, images = build(HEADS['fcn'][0]).eval(), torch.randn(3, 3, 32, 32)
    with FeatureTap(model) as tap:
        dense_logits(model, images[:1])
        dense_logits(model, images[1:])
    with FeatureTap(model) as whole:
        dense_logits(model, images)
    torch.testing.assert_close(tap.features, whole.features)


def test_features_are_those_after_the_dropout():
    model = build(HEADS['fcn'][0], dropout_ratio=0.5).train()
    with FeatureTap(model) as tap:
        dense_logits(model, torch.randn(8, 3, 32, 32))
    dropped = tap.features.abs().amax(dim=(2, 3)) == 0
    assert 0.2 < dropped.float().mean() < 0.8


def test_heads_without_a_dense_classifier_are_refused():
    model = build(HEADS['fcn'][0])
    del model.decode_head.conv_seg
    with pytest.raises(ValueError, match=r'FCNHead has no such module.*`contrast\.classifier`'):
        FeatureTap(model)


def cascade(**last):
    cfg = tiny_segmentor()
    first = dict(COMMON, **copy.deepcopy(HEADS['fcn'][0]))
    cfg.update(type='CascadeEncoderDecoder', num_stages=2)
    cfg['decode_head'] = [first, dict(COMMON, channels=6, **last)]
    with DefaultScope.overwrite_default_scope('mmseg'):
        return build_segmentor(cfg)


def test_the_last_head_of_a_cascade_counts():
    model = cascade(type='OCRHead', in_channels=16, in_index=1, ocr_channels=4).eval()
    images = torch.randn(2, 3, 64, 64)
    with FeatureTap(model) as tap:
        dense_logits(model, images)
    assert len(tap.calls) == 1 and feature_channels(tap.classifier) == tap.features.shape[1]
    torch.testing.assert_close(model.decode_head[-1].conv_seg(tap.features), tap.logits)


def test_the_refused_head_of_a_cascade_is_named():
    model = cascade(type='OCRHead', in_channels=16, in_index=1, ocr_channels=4)
    del model.decode_head[-1].conv_seg
    with pytest.raises(ValueError, match='OCRHead has no such module'):
        FeatureTap(model)


def test_a_classifier_that_never_runs_is_named():
    model = build(HEADS['fcn'][0])
    with FeatureTap(model) as tap:
        model.extract_feat(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r'FCNHead never called `decode_head\.conv_seg`'):
        _ = tap.features


def test_a_layer_that_changes_the_size_is_no_classifier():
    model = build(HEADS['fcn'][0])
    refused = pytest.raises(ValueError, match='does not classify a feature map')
    with refused, FeatureTap(model, 'backbone.conv1'):
        dense_logits(model, torch.randn(1, 3, 32, 32))


def test_another_layer_can_be_named():
    model = build(HEADS['fcn'][0]).eval()
    with FeatureTap(model, 'decode_head.convs.0.conv') as tap:
        dense_logits(model, torch.randn(1, 3, 32, 32))
    assert tap.features.shape[1] == 16
