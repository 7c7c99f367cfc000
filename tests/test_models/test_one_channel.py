"""A head of one channel (a sigmoid) learns and predicts what one of two channels (0, z) does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tiny_models import labeled_samples, semi_batch, tiny_segmentor

from mmdmt.models import EnsembleSegmentor
from mmdmt.models.forward import two_logits
from mmdmt.models.methods.networks import build_segmentor
from mmdmt.pseudo.prediction import predict_probabilities
from mmdmt.registry import MODELS


def network(channels, auxiliary=False):
    cfg = tiny_segmentor(num_classes=2, auxiliary=auxiliary, dropout=0)
    for head in filter(None, (cfg['decode_head'], cfg.get('auxiliary_head'))):
        if channels == 1:
            head.update(out_channels=1, threshold=0.5)
            head['loss_decode'].update(use_sigmoid=True)
    return cfg


def with_zero_logit(state):
    """The same weights for two channels of which the first is always 0."""
    state = copy.deepcopy(state)
    for key, value in state.items():
        if 'conv_seg' in key:
            state[key] = torch.cat([torch.zeros_like(value), value])
    return state


def twins(build):
    """A model with heads of one channel, and the same one with two."""
    torch.manual_seed(0)
    models = [build(network(1)), build(network(2))]
    with torch.no_grad():
        for name, value in models[0].named_parameters():
            if 'conv_seg.bias' in name:  # not all pixels the same class
                value.add_(0.1)
    models[1].load_state_dict(with_zero_logit(models[0].state_dict()))
    return [model.train() for model in models]


METHODS = {
    'MeanTeacher': dict(threshold=0.51, mix=dict(type='mmdmt.CutMix')),
    'FixMatch': dict(threshold=0.51),
    'CPS': dict(),
    'CutMixSeg': dict(threshold=0.5),
    'UniMatch': dict(threshold=0.51, mix=dict(type='mmdmt.CutMix')),
    'UniMatchV2': dict(threshold=0.51),
    'U2PL': dict(),
    'AugSeg': dict(threshold=0.51, mix=dict(type='mmdmt.AdaptiveCutMix')),
    'DualTeacher': dict(threshold=0.51, shift_length=2),
    'CrossTeacher': dict(threshold=0.51, mix=dict(type='mmdmt.ClassMix')),
}


@pytest.mark.parametrize('method', METHODS)
def test_methods_learn_the_same(method):
    strong = dict(type='mmdmt.StrongAugment')
    settings = dict(dict(strong=strong) if method != 'CPS' else {}, **METHODS[method])
    one, two = twins(
        lambda cfg: MODELS.build(dict(type=f'mmdmt.{method}', segmentor=cfg, **settings))
    )
    torch.manual_seed(1)
    batch = semi_batch(num_labeled=3, num_classes=2)
    batch[1]['sup'][0].gt_sem_seg.data[:, :5] = 255
    found = []
    for model in (one, two):
        torch.manual_seed(2)
        losses = model.loss(*copy.deepcopy(batch))
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        found.append({name: value.detach() for name, value in losses.items()})
    assert found[0].keys() == found[1].keys()
    assert any('unsup' in name and value > 0 for name, value in found[0].items())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4, msg=name)
    gradients = [
        torch.cat([p.grad.flatten() for n, p in model.named_parameters()
                   if 'backbone' in n and p.grad is not None])
        for model in (one, two)
    ]  # fmt: skip
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize('avg_non_ignore', [True, False])
def test_the_supervised_loss_is_binary_cross_entropy(avg_non_ignore):
    cfg = network(1)
    cfg['decode_head']['loss_decode'].update(avg_non_ignore=avg_non_ignore, loss_weight=0.5)
    model = MODELS.build(dict(type='mmdmt.MeanTeacher', segmentor=cfg))
    label = torch.randint(0, 2, (2, 16, 16))
    label[0] = 255
    logits = torch.randn(2, 1, 16, 16)
    losses = model.student.decode_head.loss_by_feat(logits, labeled_samples(label))
    kept = label != 255
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0][kept], label[kept].float(), reduction='sum'
    )
    expected = 0.5 * expected / (kept.sum() if avg_non_ignore else label.numel())
    torch.testing.assert_close(losses['loss_ce'], expected)
    right = ((logits[:, 0] > 0) == label)[kept].float().mean()
    torch.testing.assert_close(losses['acc_seg'], 100 * right[None], atol=1e-3, rtol=0)
    label[:] = 255  # nothing to learn is no error
    assert model.student.decode_head.loss_by_feat(logits, labeled_samples(label))['loss_ce'] == 0


def test_dmt_learns_the_same():
    def build(cfg):
        cfg = dict(cfg, type='mmdmt.PseudoLabelSegmentor')
        return build_segmentor(
            dict(cfg, pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=1.0, gamma2=2.0))
        )

    one, two = twins(build)
    samples = labeled_samples(torch.randint(0, 2, (3, 32, 32)))
    for sample in samples[1:]:
        sample.pseudo_confidence = PixelData(data=torch.rand(1, 32, 32) / 2 + 0.5)
        sample.set_metainfo(dict(is_pseudo=True))
    images = torch.randn(3, 3, 32, 32)
    found = [model.loss(images, samples) for model in (one, two)]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


def test_predictions_have_two_probabilities():
    one, two = (model.eval() for model in twins(build_segmentor))
    batch = dict(inputs=[torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)])
    meta = dict(ori_shape=(32, 32), img_shape=(32, 32), pad_shape=(32, 32))

    def probabilities(model):
        samples = [SegDataSample(metainfo=meta)]
        return predict_probabilities(model, dict(batch, data_samples=samples), tta=dict(flip=True))

    with torch.no_grad():
        (got,), (expected,) = probabilities(one), probabilities(two)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.sum(0), torch.ones(32, 32))


def test_averages_and_ensembles_of_sigmoids():
    cfg = network(1)
    model = MODELS.build(
        dict(type='mmdmt.CPS', segmentor=cfg, predict_on='average', seeds=[1, 2])
    ).eval()
    model.init_weights()
    images = torch.randn(1, 3, 32, 32)
    meta = dict(ori_shape=(32, 32), img_shape=(32, 32), pad_shape=(32, 32))
    with torch.no_grad():
        parts = [model.network(name).encode_decode(images, [meta]) for name in model.student_names]
        (sample,) = model.predict(images, [SegDataSample(metainfo=meta)])
    mean = torch.stack([part.sigmoid() for part in parts]).mean(0)[0]
    torch.testing.assert_close(sample.seg_logits.data, mean, atol=1e-4, rtol=0)
    assert torch.equal(sample.pred_sem_seg.data.bool(), mean > 0.5)

    ensemble = EnsembleSegmentor([cfg, cfg]).eval()
    for member, name in zip(ensemble.members, model.student_names):
        member.load_state_dict(model.network(name).state_dict())
    raw = torch.randint(0, 256, (3, 32, 32)).float()
    (sample,) = ensemble.predict([raw], [SegDataSample(metainfo=meta)])
    assert sample.seg_logits.data.shape == (2, 32, 32)
    assert ensemble.out_channels == 2
    torch.testing.assert_close(sample.seg_logits.data.exp().sum(0), torch.ones(32, 32))


@pytest.mark.parametrize('method', ['U2PL', 'CrossTeacher'])
def test_contrast_sees_two_classes(method):
    model = MODELS.build(
        dict(type=f'mmdmt.{method}', segmentor=network(1), contrast=dict(start=0.0))
        if method == 'CrossTeacher'
        else dict(type='mmdmt.U2PL', segmentor=network(1), contrast={})
    )
    model.start_run(10, [1, 1])
    losses = model.train().loss(*semi_batch(num_classes=2))
    assert all(value.isfinite().all() for value in losses.values())
    assert any('contrast' in name for name in losses)


def test_two_logits():
    z = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(two_logits(z).softmax(1)[:, 1:], z.sigmoid())
    assert two_logits(z.expand(2, 4, 3, 3)).shape == (2, 4, 3, 3)
