"""The supervised loss that does not wait for the device is mmseg's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from tiny_models import NUM_CLASSES, labeled_samples, tiny_segmentor

from mmdmt.models.methods.networks import build_segmentor
from mmdmt.models.supervised import dense_loss, pixel_accuracy, train_without_waiting

CE = dict(type='CrossEntropyLoss', avg_non_ignore=True)
WEIGHTS = [0.5, 1.0, 2.0, 0.0]
LOSSES = {
    'usual': CE,
    'weighted': dict(CE, loss_weight=0.4),
    'all_pixels': dict(CE, avg_non_ignore=False),
    'classes': dict(CE, avg_non_ignore=False, class_weight=WEIGHTS),
    'sigmoid': dict(CE, use_sigmoid=True),
    'sum': dict(CE, reduction='sum'),
    'several': [CE, dict(type='DiceLoss', loss_name='loss_dice'), dict(CE, loss_weight=0.1)],
}


def head_of(loss, sampler=None):
    cfg = tiny_segmentor(dropout=0)
    cfg['decode_head'].update(loss_decode=loss)
    if sampler:
        cfg['decode_head'].update(sampler=sampler)
    return build_segmentor(cfg).decode_head


def maps(ignored):
    torch.manual_seed(0)
    label = torch.randint(0, NUM_CLASSES, (2, 32, 32))
    label[:, :, 32 - ignored :] = 255
    return torch.randn(2, NUM_CLASSES, 16, 16, requires_grad=True), labeled_samples(label)


def both(head, ignored):
    """Losses, and their gradient, as mmseg computes them and as this package does."""
    results = []
    for function in (BaseDecodeHead.loss_by_feat, dense_loss):
        logits, samples = maps(ignored)
        losses = function(head, logits, samples)
        sum(value for key, value in losses.items() if 'loss' in key).sum().backward()
        results.append(dict(losses, grad=logits.grad))
    return results


@pytest.mark.parametrize('ignored', [0, 5, 32])
@pytest.mark.parametrize('kind', LOSSES)
def test_values_and_gradients_are_those_of_mmseg(kind, ignored):
    expected, found = both(head_of(LOSSES[kind]), ignored)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.isfinite(found[key]).all(), key
        torch.testing.assert_close(found[key], value, msg=key)


def test_a_pixel_sampler_has_its_say():
    sampler = dict(type='OHEMPixelSampler', thresh=0.3, min_kept=100)
    expected, found = both(head_of(CE, sampler), 5)
    usual = both(head_of(CE), 5)[0]
    assert expected['loss_ce'] != usual['loss_ce']
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_class_weights_without_ignored_pixels():
    """mmseg fails here; torch has the formula."""
    logits, samples = maps(5)
    found = dense_loss(head_of(dict(CE, class_weight=WEIGHTS)), logits, samples)
    label = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    large = F.interpolate(logits, size=label.shape[1:], mode='bilinear', align_corners=False)
    weight = torch.tensor(WEIGHTS)
    expected = F.cross_entropy(large, label, weight=weight, ignore_index=255)
    torch.testing.assert_close(found['loss_ce'], expected)


def test_accuracy_without_any_pixel():
    label = torch.full((1, 4, 4), 255)
    assert pixel_accuracy(torch.zeros(1, 3, 4, 4), label, 255).item() == 100


def test_every_head_of_a_segmentor_is_reached():
    model = build_segmentor(tiny_segmentor(auxiliary=True))
    train_without_waiting(model)
    for head in (model.decode_head, model.auxiliary_head):
        assert head.loss_by_feat.__func__ is dense_loss
    twin = copy.deepcopy(model)  # as EMAHook makes one
    assert twin.decode_head.loss_by_feat.__self__ is twin.decode_head


def test_a_head_with_a_loss_of_its_own_keeps_it():
    cfg = tiny_segmentor()
    cfg['decode_head'].update(
        type='EncHead', in_channels=[8, 16], in_index=(0, 1), num_codes=4, use_se_loss=False
    )
    for key in ('num_convs', 'concat_input'):
        del cfg['decode_head'][key]
    model = build_segmentor(cfg)
    train_without_waiting(model)
    assert 'loss_by_feat' not in vars(model.decode_head)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('order', [dict(bgr_to_rgb=True), dict(rgb_to_bgr=True), {}])
def test_images_are_prepared_as_by_mmseg(order, training):
    cfg = tiny_segmentor()
    cfg['data_preprocessor'].pop('bgr_to_rgb')
    cfg['data_preprocessor'].update(order)
    model = build_segmentor(cfg)
    images = [torch.randint(0, 256, (3, 32, 24), dtype=torch.uint8) for _ in range(2)]
    prepared = []
    for _ in range(2):
        samples = labeled_samples(torch.zeros(2, 32, 24))
        data = dict(inputs=list(images), data_samples=samples)
        prepared.append(model.data_preprocessor(data, training)['inputs'])
        train_without_waiting(model)
    assert torch.equal(*prepared)
