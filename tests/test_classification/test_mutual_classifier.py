import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.structures import DataSample
from tiny_classification import tiny_classifier

import mmdmt.classification  # noqa: F401
from mmdmt.classification.mutual_classifier import Mix
from mmdmt.registry import MODELS

GOLDEN = Path(__file__).resolve().parents[1] / 'data' / 'golden' / 'cls_loss_0.npz'


@pytest.fixture(autouse=True)
def progress():
    """A training loop at step 3 of 10, as the runner has it."""
    hub = MessageHub.get_instance('test_mutual_classifier')
    hub.update_info('iter', 3)
    hub.update_info('max_iters', 10)
    return hub


def build(**settings):
    torch.manual_seed(0)
    model = MODELS.build(tiny_classifier(**settings))
    model.init_weights()
    return model.train()


def batch(labeled=2, pseudo=4, classes=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(labeled + pseudo, 3, 8, 8, generator=generator)
    samples = []
    for index in range(labeled + pseudo):
        sample = DataSample().set_gt_label(index % classes)
        if index >= labeled:
            soft = np.full(classes, 0.1, np.float32)
            soft[index % classes] = 0.8
            sample.set_field(soft, 'soft_label')
        samples.append(sample)
    return images, samples


def test_loss_and_gradient_are_the_published_ones(monkeypatch):
    data = dict(np.load(GOLDEN))
    config = tiny_classifier(gamma1=4.0, gamma2=4.0)
    config['head']['num_classes'] = 10
    model = MODELS.build(config)
    hub = MessageHub.get_current_instance()
    hub.update_info('iter', int(data['steps']))
    hub.update_info('max_iters', int(data['T_max']))
    after = torch.from_numpy(data['logits_after_mixup']).requires_grad_()
    outputs = [torch.from_numpy(data['logits_before_mixup']), after]
    seen = []
    monkeypatch.setattr(model, '_logits', lambda images: seen.append(images) or outputs.pop(0))
    mix = Mix(float(data['lam']), torch.from_numpy(data['perm']))
    monkeypatch.setattr(model, '_draw_mix', lambda count, device: mix)
    samples = []
    for index, soft in enumerate(data['pseudo_probs']):
        sample = DataSample().set_gt_label(int(soft.argmax()))
        if index < data['num_pseudo']:
            sample.set_field(soft, 'soft_label')
        samples.append(sample)
    images = torch.randn(12, 3, 4, 4)
    losses = model.loss(images, samples)
    losses['loss'].backward()
    torch.testing.assert_close(losses['loss'].item(), float(data['loss']), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(after.grad, torch.from_numpy(data['grad']), rtol=1e-5, atol=1e-7)
    assert losses['pseudo_disagreement'].item() == pytest.approx(data['stat.disagree'] / 9)
    assert losses['pseudo_student_wins'].item() == pytest.approx(data['stat.current_win'] / 9)
    assert losses['mean_weight'].item() == pytest.approx(float(data['stat.avg_weights']), 1e-5)
    assert torch.equal(seen[0], images)  # weights come from the images themselves
    expected = mix.lam * images + (1 - mix.lam) * images[mix.perm]
    torch.testing.assert_close(seen[1], expected)


def test_gammas_follow_the_ramp_of_the_running_loop():
    model = build(gamma1=4.0, gamma2=4.0)
    assert model._ramp() == pytest.approx(math.exp(-5 * (1 - 4 / 10) ** 2))
    assert model.loss(*batch())['gamma_ramp'].item() == pytest.approx(model._ramp())
    model.ramp = False
    assert model._ramp() == 1.0


def test_without_gammas_there_is_one_forward(monkeypatch):
    model = build()
    calls = []
    logits = model._logits
    monkeypatch.setattr(model, '_logits', lambda images: calls.append(1) or logits(images))
    assert set(model.loss(*batch())) == {'loss'} and len(calls) == 1
    model.gamma1 = model.gamma2 = 4.0
    model.loss(*batch())
    assert len(calls) == 3


@pytest.mark.parametrize('twice', [False, True])
def test_weighting_updates_batch_norm_only_on_demand(twice):
    """Statistics see the mixed images once; as published, also the images themselves."""
    once = build(mixup_alpha=0.0)
    once.loss(*batch())
    for gamma in (0.0, 4.0):  # also of curriculum labeling, which needs no weights
        model = build(gamma1=gamma, gamma2=gamma, update_bn_twice=twice, mixup_alpha=0.0)
        model.loss(*batch())
        norm = model.backbone.norm
        assert int(norm.num_batches_tracked) == (2 if twice else 1)
        assert torch.equal(norm.running_mean, once.backbone.norm.running_mean) is not twice


def test_weights_carry_no_gradient():
    model = build(gamma1=4.0, gamma2=4.0)
    images, samples = batch()
    soft, is_pseudo = model._targets(samples, images.device)
    weight, stats = model._weights(images, soft, is_pseudo, Mix(1.0, torch.arange(6)))
    assert not weight.requires_grad and not any(v.requires_grad for v in stats.values())
    assert torch.equal(weight[:2], torch.ones(2)) and (weight[2:] < 1).all()


def test_one_share_above_one_half_for_the_batch():
    model = build()
    np.random.seed(0)
    torch.manual_seed(0)
    draws = [model._draw_mix(5, torch.device('cpu')) for _ in range(200)]
    shares = np.array([draw.lam for draw in draws])
    assert shares.min() >= 0.5 and shares.max() <= 1 and shares.std() > 0.1
    assert all(sorted(draw.perm.tolist()) == [0, 1, 2, 3, 4] for draw in draws)
    model.mixup_alpha = 0.0
    draw = model._draw_mix(5, torch.device('cpu'))
    assert draw.lam == 1.0 and draw.perm.tolist() == [0, 1, 2, 3, 4]


def test_targets_are_one_hot_where_labeled():
    model = build()
    soft, is_pseudo = model._targets(batch(labeled=1, pseudo=2)[1], torch.device('cpu'))
    assert is_pseudo.tolist() == [False, True, True]
    expected = [[1, 0, 0], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    torch.testing.assert_close(soft, torch.tensor(expected))


def test_labeled_only_loss_without_mixup_is_cross_entropy():
    model = build(mixup_alpha=0.0)
    images, samples = batch(labeled=4, pseudo=0)
    loss = model.loss(images, samples)['loss']
    model = build(mixup_alpha=0.0)
    labels = torch.cat([sample.gt_label for sample in samples])
    expected = torch.nn.functional.cross_entropy(model._logits(images), labels)
    torch.testing.assert_close(loss, expected)


def test_training_step_under_mixed_precision():
    model = build(gamma1=4.0, gamma2=4.0)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(*batch())
    losses['loss'].backward()
    assert losses['loss'].dtype == torch.float32 and torch.isfinite(losses['loss'])
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_checkpoints_load_into_an_ordinary_classifier():
    model = build()
    plain = tiny_classifier()
    plain['type'] = 'mmpretrain.ImageClassifier'
    plain = MODELS.build(plain)
    plain.load_state_dict(model.state_dict())
    images = batch()[0]
    torch.testing.assert_close(plain.eval()(images), model.eval()(images))


@pytest.mark.parametrize('name', ['gamma1', 'gamma2', 'mixup_alpha'])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=name):
        build(**{name: -1.0})


MIXUP = dict(augments=dict(type='mmpretrain.Mixup', alpha=0.8))


@pytest.mark.parametrize('part', ['train_cfg', 'data_preprocessor'])
def test_mixing_by_the_preprocessor_is_refused(part):
    """It would mix images a second time, with labels that are not read."""
    cfg = tiny_classifier()
    if part == 'train_cfg':
        cfg['train_cfg'] = MIXUP
    else:
        cfg['data_preprocessor']['batch_augments'] = MIXUP
    with pytest.raises(ValueError, match=rf'model\.{part}.*set .model\.mixup_alpha'):
        MODELS.build(cfg)


def test_losses_of_heads_are_refused():
    cfg = tiny_classifier()
    cfg['head']['loss'] = dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1)
    with pytest.raises(ValueError, match=r'model\.head\.loss.*LabelSmoothLoss.*take it out'):
        MODELS.build(cfg)
    cfg['head']['loss'] = dict(type='mmpretrain.CrossEntropyLoss', class_weight=[1, 2, 3])
    with pytest.raises(ValueError, match='class_weight'):
        MODELS.build(cfg)
    cfg['head']['loss'] = dict(type='mmpretrain.CrossEntropyLoss', loss_weight=1.0)
    MODELS.build(cfg)  # what is done anyway
