import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from mmseg.models.decode_heads import DAHead, EncHead, FCNHead, PIDHead, PointHead
from tiny_models import NORMALIZE, labeled_samples, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import dense_logits, is_dense_classifier
from mmdmt.models.losses.functional import dynamic_mutual_loss, online_pseudo_loss
from mmdmt.models.methods.base import build_segmentor
from mmdmt.registry import MODELS

DMT_LOSS = dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0)
CROSS_ENTROPY = dict(type='CrossEntropyLoss', avg_non_ignore=True)


def build(auxiliary=False, pseudo_loss=DMT_LOSS, network=None, batch_statistics='joint', **changes):
    torch.manual_seed(0)
    cfg = network or tiny_segmentor(auxiliary=auxiliary, dropout=0)
    cfg.update(
        type='mmdmt.PseudoLabelSegmentor',
        pseudo_loss=pseudo_loss,
        batch_statistics=batch_statistics,
    )
    cfg['decode_head'].update(changes)
    return build_segmentor(cfg)


def batch():
    torch.manual_seed(2)
    labels = torch.randint(0, 4, (3, 32, 32))
    labels[1, :5] = 255
    confidence = torch.rand(3, 32, 32)
    samples = labeled_samples(labels)
    for index in (1, 2):
        samples[index].pseudo_confidence = PixelData(data=confidence[index][None])
        samples[index].set_metainfo(dict(is_pseudo=True))
    confidence[0] = 1
    return torch.randn(3, 3, 32, 32), samples, labels, confidence


def test_loss_is_the_dynamic_mutual_loss_of_the_batch():
    model = build().eval()
    images, samples, labels, confidence = batch()
    losses = model.loss(images, samples)
    is_pseudo = torch.tensor([False, True, True])
    expected, stats = dynamic_mutual_loss(
        dense_logits(model, images), labels, confidence, is_pseudo, 5.0, 5.0
    )
    torch.testing.assert_close(losses['decode.loss_pseudo'], expected)
    kept = (labels[1:] != 255).sum()
    torch.testing.assert_close(losses['pseudo_keep_ratio'], kept / labels[1:].numel())
    torch.testing.assert_close(losses['pseudo_disagreement'], stats['disagreement'] / kept)


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='mmdmt.DynamicMutualLoss', gamma1=0.0, gamma2=0.0),
        dict(type='mmdmt.DynamicSelfLoss', gamma=0.0),
        dict(type='mmdmt.DynamicSelfLoss', gamma=9.0),
    ],
)
def test_every_loss_of_stored_labels_reports_the_same_health(loss):
    """Also with gammas of 0, where no weight depends on the predictions."""
    images, samples, *_ = batch()
    expected = build().eval().loss(images, samples)
    losses = build(pseudo_loss=loss).eval().loss(images, samples)
    assert losses.keys() == expected.keys()
    for key in ('pseudo_keep_ratio', 'pseudo_disagreement', 'pseudo_student_wins'):
        assert 0 < losses[key] < 1
        torch.testing.assert_close(losses[key], expected[key])
    assert (losses['mean_weight'] < 1) == (loss.get('gamma') == 9)


@pytest.mark.parametrize('name', ['DynamicMutualLoss', 'DynamicSelfLoss', 'OnlinePseudoLoss'])
def test_health_of_a_batch_without_pseudo_labels_has_the_same_keys_and_no_nan(name):
    """Other keys than those of the other ranks would end a distributed run."""
    model = build(pseudo_loss=dict(type=f'mmdmt.{name}')).eval()
    images, samples, *_ = batch()
    keys = model.loss(images, samples).keys()
    losses = model.loss(images[:1], samples[:1])
    assert losses.keys() == keys
    assert all(value.isfinite() for value in losses.values())
    assert all(value == 0 for key, value in losses.items() if key.startswith('pseudo_'))


def test_padding_is_no_pseudo_labeled_pixel():
    """All of two small images is kept: of the padding around them nothing could be."""
    model = build().eval()
    preprocessor = MODELS.build(dict(type='mmseg.SegDataPreProcessor', size=(64, 64), **NORMALIZE))
    _, samples, labels, _ = batch()
    for sample in samples[1:]:
        sample.gt_sem_seg.data = labels[:1].clone()
        sample.pseudo_confidence.data.clamp_(min=0.1)
    whole = [F.pad(sample.pseudo_confidence.data, (0, 32, 0, 32)) for sample in samples[1:]]
    images = [torch.zeros(3, 32, 32, dtype=torch.uint8) for _ in samples]
    data = preprocessor(dict(inputs=images, data_samples=samples), training=True)
    assert data['inputs'].shape[2:] == (64, 64)
    samples = data['data_samples']
    assert samples[1].gt_sem_seg.shape == (64, 64)
    assert samples[1].pseudo_confidence.shape == (32, 32)
    losses = model.loss(data['inputs'], samples)
    assert losses['pseudo_keep_ratio'] == 1
    for sample, padded in zip(samples[1:], whole):
        sample.pseudo_confidence = PixelData(data=padded.clone())
    same = model.loss(data['inputs'], samples)
    torch.testing.assert_close(same['decode.loss_pseudo'], losses['decode.loss_pseudo'])
    # A pipeline pads the confidence like a label, with 255.
    for sample in samples[1:]:
        sample.pseudo_confidence.data[:, 32:] = 255
        sample.pseudo_confidence.data[:, :, 32:] = 255
    assert model.loss(data['inputs'], samples)['pseudo_keep_ratio'] == 1
    samples[1].gt_sem_seg.data[:, :16] = 255  # below the threshold
    assert model.loss(data['inputs'], samples)['pseudo_keep_ratio'] == 0.75


def test_health_of_labels_made_on_the_fly_is_theirs():
    """Stored labels are not read, so that their share means nothing."""
    model = build(pseudo_loss=dict(type='mmdmt.OnlinePseudoLoss', threshold=0.3)).eval()
    images, samples, labels, _ = batch()
    is_pseudo = torch.tensor([False, True, True])
    _, stats = online_pseudo_loss(dense_logits(model, images), labels, is_pseudo, 0.3)
    losses = model.loss(images, samples)
    torch.testing.assert_close(losses.pop('pseudo_keep_ratio'), stats['keep_ratio'])
    assert 0 < stats['keep_ratio'] < 1
    assert set(losses) == {'decode.loss_pseudo'}  # student and label cannot disagree


def test_padding_is_not_learned_by_labels_made_on_the_fly():
    """Stored confidence is padded with 0; whatever lies there must not count."""
    model = build(pseudo_loss=dict(type='mmdmt.OnlinePseudoLoss', threshold=0.0)).eval()
    images, samples, *_ = batch()
    for sample in samples[1:]:
        sample.pseudo_confidence.data[:, 20:] = 0
    logits = dense_logits(model, images)
    loss = model.loss(images, samples)['decode.loss_pseudo']
    own = logits.argmax(1)
    own[1:, 20:] = 255
    own[0] = samples[0].gt_sem_seg.data[0]
    expected = F.cross_entropy(logits, own, ignore_index=255)
    torch.testing.assert_close(loss, expected)


def test_auxiliary_heads_learn_with_their_weight():
    model = build(auxiliary=True).eval()
    images, samples, *_ = batch()
    losses = model.loss(images, samples)
    model.auxiliary_head.loss_decode.loss_weight = 0.8
    doubled = model.loss(images, samples)
    torch.testing.assert_close(doubled['aux_0.loss_pseudo'], 2 * losses['aux_0.loss_pseudo'])


def test_checkpoint_is_that_of_a_plain_segmentor():
    plain = build_segmentor(tiny_segmentor())
    assert list(build().state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    'loss_decode, weight',
    [
        (dict(CROSS_ENTROPY, loss_weight=0.4), 0.4),
        ([dict(CROSS_ENTROPY, loss_weight=0.4), dict(type='DiceLoss', loss_weight=3.0)], 0.4),
        (dict(type='DiceLoss', loss_weight=3.0), 3.0),
    ],
)
def test_the_decode_head_learns_with_its_weight(loss_decode, weight):
    images, samples, *_ = batch()
    expected = build().eval().loss(images, samples)
    losses = build(loss_decode=loss_decode).eval().loss(images, samples)
    torch.testing.assert_close(
        losses.pop('decode.loss_pseudo'), weight * expected.pop('decode.loss_pseudo')
    )
    assert losses == expected  # a weight changes no statistic


def test_the_label_a_head_ignores_is_not_learned():
    """Void pixels of the ground truth, on top of the 255 of what is below a threshold."""
    images, samples, *_ = batch()
    void = copy.deepcopy(samples)
    for sample in samples:
        sample.gt_sem_seg.data[sample.gt_sem_seg.data == 2] = 255
    expected = build().eval().loss(images, samples)
    losses = build(ignore_index=2).eval().loss(images, void)
    assert losses == expected
    assert (void[0].gt_sem_seg.data == 2).any()  # the samples are as they were


@pytest.mark.parametrize(
    'changes, setting',
    [
        (dict(loss_decode=dict(CROSS_ENTROPY, class_weight=[1.0, 2, 3, 4])), 'class_weight=[1.0'),
        (dict(loss_decode=dict(CROSS_ENTROPY, use_sigmoid=True)), 'use_sigmoid=True'),
        (dict(loss_decode=dict(type='FocalLoss')), 'loss_decode=FocalLoss'),
        (
            dict(loss_decode=[CROSS_ENTROPY, dict(type='DiceLoss')]),
            'loss_decode=[CrossEntropyLoss, DiceLoss]',
        ),
        (dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7)), 'sampler=OHEMPixelSampler'),
    ],
)
def test_settings_that_the_pseudo_loss_replaces_are_named_once(changes, setting):
    (record,) = warnings_of(lambda: build(auxiliary=True, **changes))
    assert f'decode_head (FCNHead): {setting}' in record.getMessage()
    assert 'DynamicMutualLoss replaces' in record.getMessage()
    assert 'auxiliary_head' not in record.getMessage()


def test_an_ordinary_cross_entropy_needs_no_warning():
    assert warnings_of(lambda: build(auxiliary=True)) == []
    cfg = tiny_segmentor(auxiliary=True)
    cfg['decode_head']['loss_decode'] = dict(type='FocalLoss')
    cfg['auxiliary_head'] = [dict(cfg['auxiliary_head'], sampler=dict(type='OHEMPixelSampler'))]
    (record,) = warnings_of(lambda: build(network=cfg))
    assert 'decode_head (FCNHead): loss_decode=FocalLoss; auxiliary_head[0]' in record.getMessage()


def warnings_of(function):
    """Records that mmengine's logger gets."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        function()
    finally:
        logger.removeHandler(handler)
    return records


# -------------------------------------------------------------------------------------- heads

TUPLE_HEADS = {
    'EncHead': dict(type='EncHead', in_channels=[8, 16], in_index=(0, 1), num_codes=4),
    'DAHead': dict(type='DAHead', pam_channels=4),
    'PIDHead': dict(type='PIDHead'),
    'DDRHead': dict(type='DDRHead'),
}


def head_of(cfg, settings):
    """A tiny head with its own settings in place of the FCN head's."""
    own = ['num_convs', 'concat_input', 'dropout_ratio', 'in_index']
    if settings['type'] == 'mmdmt.DeepLabV2Head':  # as wide as its input
        own.append('channels')
    base = {key: value for key, value in cfg['decode_head'].items() if key not in own}
    return dict(base, **{'in_index': 1, **settings})


@pytest.mark.parametrize('place', ['decode_head', 'auxiliary_head'])
@pytest.mark.parametrize('name', TUPLE_HEADS)
def test_heads_without_one_map_of_logits_are_refused_by_type(name, place):
    cfg = tiny_segmentor(auxiliary=True)
    cfg[place] = head_of(cfg, TUPLE_HEADS[name])
    with pytest.raises(ValueError, match=rf'{place}\S* is a {name}'):
        build(network=cfg)


def test_what_is_a_dense_classifier_is_known_from_the_class():
    assert is_dense_classifier(FCNHead)
    for head in (EncHead, DAHead, PIDHead, PointHead, torch.nn.Conv2d):
        assert not is_dense_classifier(head)


@pytest.mark.parametrize(
    'settings',
    [
        dict(type='ASPPHead', dilations=(1, 2)),
        dict(type='PSPHead', pool_scales=(1, 2)),
        dict(type='UPerHead', in_channels=[8, 16], in_index=[0, 1], pool_scales=(1, 2)),
        dict(type='DepthwiseSeparableASPPHead', dilations=(1, 2), c1_in_channels=0, c1_channels=0),
        dict(type='mmdmt.DeepLabV2Head', dilations=(1, 2)),
        None,
    ],
)
def test_heads_with_one_map_of_logits_learn(settings):
    network = tiny_segmentor() if settings else tiny_segformer()
    if settings:
        network['decode_head'] = head_of(network, settings)
    model = build(network=network).train()
    images, samples, *_ = batch()
    loss = model.loss(images, samples)['decode.loss_pseudo']
    loss.backward()
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in model.decode_head.parameters())


def running_means(model):
    return [m.running_mean.clone() for m in model.modules() if hasattr(m, 'running_mean')]


@pytest.mark.parametrize('order', [[0, 1, 2], [1, 0, 2]])
def test_separate_statistics_are_those_of_each_kind_of_images(order):
    images, samples, labels, confidence = batch()
    images, labels, confidence = (each[order] for each in (images, labels, confidence))
    samples = [samples[index] for index in order]
    pseudo = torch.tensor([index > 0 for index in order])
    model = build(batch_statistics='separate').train()
    logits = torch.zeros(3, 4, 32, 32)
    for kind in (~pseudo, pseudo):
        logits[kind] = dense_logits(copy.deepcopy(model), images[kind])

    losses = model.loss(images, samples)

    expected, _ = dynamic_mutual_loss(logits, labels, confidence, pseudo, 5.0, 5.0)
    torch.testing.assert_close(losses['decode.loss_pseudo'], expected)
    joint = build().train().loss(images, samples)
    assert abs(joint['decode.loss_pseudo'] - expected) > 1e-4


def test_domain_statistics_are_collected_from_pseudo_labeled_images_alone():
    images, samples, *_ = batch()
    model, alone, separate = (
        build(batch_statistics=kind).train() for kind in ('domain', 'separate', 'separate')
    )
    before = running_means(model)
    losses = model.loss(images, samples)
    torch.testing.assert_close(losses, separate.loss(images, samples))
    dense_logits(alone, images[1:])
    torch.testing.assert_close(running_means(model), running_means(alone))
    assert not torch.equal(running_means(model)[0], running_means(separate)[0])

    after = running_means(model)
    model.loss(images[:1], samples[:1])  # no pseudo-labeled image in the batch
    torch.testing.assert_close(running_means(model), after)
    assert not torch.equal(before[0], after[0])


def test_every_head_has_the_statistics_of_its_images():
    images, samples, *_ = batch()
    model = build(auxiliary=True, batch_statistics='separate').eval()
    expected = build(auxiliary=True).eval().loss(images, samples)
    losses = model.loss(images, samples)
    assert 'aux_0.loss_pseudo' in losses
    torch.testing.assert_close(losses, expected)


def test_unknown_statistics_and_layers_that_would_move_them_are_refused():
    with pytest.raises(ValueError, match=r"batch_statistics.*'jiont'"):
        build(batch_statistics='jiont')
    network = tiny_segmentor(dropout=0)
    network['backbone']['with_cp'] = True
    with pytest.raises(ValueError, match='with_cp=True'):
        build(network=network, batch_statistics='domain')
