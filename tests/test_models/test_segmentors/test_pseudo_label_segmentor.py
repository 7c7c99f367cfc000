import pytest
import torch
from mmengine.structures import PixelData
from tiny_models import labeled_samples, tiny_segmentor

from mmdmt.models.losses.functional import dynamic_mutual_loss
from mmdmt.models.segmentors.forward import dense_logits
from mmdmt.models.segmentors.semi_base import build_segmentor

DMT_LOSS = dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0)


def build(auxiliary=False, pseudo_loss=DMT_LOSS, **changes):
    torch.manual_seed(0)
    cfg = tiny_segmentor(auxiliary=auxiliary, dropout=0)
    cfg.update(type='mmdmt.PseudoLabelSegmentor', pseudo_loss=pseudo_loss)
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


def test_without_weighting_there_is_no_disagreement_to_report():
    model = build().eval()
    model.pseudo_loss.gamma1 = model.pseudo_loss.gamma2 = 0.0
    images, samples, *_ = batch()
    assert model.loss(images, samples)['pseudo_disagreement'].isnan()


def test_padding_is_not_learned_by_labels_made_on_the_fly():
    """The preprocessor pads stored confidence with 0; whatever lies there must not count."""
    model = build(pseudo_loss=dict(type='mmdmt.OnlinePseudoLoss', threshold=0.0)).eval()
    images, samples, *_ = batch()
    for sample in samples[1:]:
        sample.pseudo_confidence.data[:, 20:] = 0
    logits = dense_logits(model, images)
    loss = model.loss(images, samples)['decode.loss_pseudo']
    own = logits.argmax(1)
    own[1:, 20:] = 255
    own[0] = samples[0].gt_sem_seg.data[0]
    expected = torch.nn.functional.cross_entropy(logits, own, ignore_index=255)
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


def test_a_head_with_a_sampler_is_refused():
    sampler = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10)
    with pytest.raises(ValueError, match='sampler'):
        build(sampler=sampler)
