"""What holds for every online method: precision, health values, cost, prediction."""

import pytest
import torch
from tiny_models import NUM_CLASSES, semi_batch, tiny_segmentor
from train_together import METHODS

from mmdmt.registry import MODELS

#: Those whose unsupervised loss is one of each student; others have tests of their own for it.
SIMPLE = [name for name in METHODS if 'dual' not in name and 'cross' not in name]

#: Images through a network in a step, with and without gradient, as multiples of the unlabeled
#: ones: the table of docs/methods.md.
PASSES = dict(
    mean_teacher=(2, 1),
    fixmatch=(2, 1),
    fixmatch_teacher=(2, 1),
    cutmix_seg=(2, 1),
    unimatch=(4, 1),
    unimatch_v2=(3, 1),
    cps=(4, 0),
    cps_cutmix=(4, 2),
    dual_teacher=(3, 1),
    u2pl=(2, 3),
    augseg=(2, 1),
    prevmatch=(4, 2),  # with one earlier student
    cross_teacher=(4, 4),
)


def build(method, num_classes=NUM_CLASSES, **settings):
    torch.manual_seed(0)
    segmentor = tiny_segmentor(num_classes)
    segmentor['decode_head']['loss_decode'] = dict(type='mmdmt.OhemCrossEntropy', min_kept=50)
    settings = {'strong': dict(type='mmdmt.StrongAugment'), **METHODS[method], **settings}
    settings['type'] = f'mmdmt.{settings["type"]}'
    if 'sup_only' in settings:  # unlabeled images from the first step on
        settings['sup_only'] = 0
    model = MODELS.build(dict(settings, segmentor=segmentor)).train()
    model.start_run(10, [3, 3])
    if getattr(model, 'previous', None) is not None:
        model.previous.take(model.student)
    return model


def total(losses):
    return sum(value for key, value in losses.items() if 'loss' in key)


def students(model):
    return [name for name in model.network_names if 'student' in name]


@pytest.mark.parametrize('method', METHODS)
def test_losses_are_of_full_precision_under_mixed_precision(method):
    model = build(method)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*semi_batch(num_labeled=3))
    for key, value in losses.items():
        assert value.isfinite().all(), key
        assert 'loss' not in key or value.dtype == torch.float32, key
    total(losses).backward()
    for name in students(model):
        gradients = [each.grad for each in model.network(name).parameters()]
        assert any(gradient is not None and gradient.any() for gradient in gradients)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('method', METHODS)
def test_health_has_the_same_names_in_all_methods(method):
    """One of each for each student that learns unlabeled images."""
    model = build(method)
    losses = model.loss(*semi_batch(num_labeled=3))
    sides = [name.partition('_')[2] for name in students(model)]
    for side in sides:
        prefix = f'unsup_{side}' if side else 'unsup'
        for name in ('keep_ratio', 'agreement', 'confidence'):
            assert 0 <= losses[f'{prefix}_{name}'] <= 1
        assert method not in SIMPLE or losses[f'{prefix}_loss'] >= 0


@pytest.mark.parametrize('num_classes', [2, 5])
@pytest.mark.parametrize('method', METHODS)
def test_any_number_of_classes_trains_on_images_of_odd_sizes(method, num_classes):
    model = build(method, num_classes)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        losses = model.loss(*semi_batch(num_labeled=3, size=37, num_classes=num_classes))
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        model.after_step()
        assert all(value.isfinite().all() for value in losses.values())
    assert model.step == 2 and all(each.isfinite().all() for each in model.state_dict().values())


@pytest.mark.parametrize('method', METHODS)
def test_images_of_a_single_class_train(method):
    """Labels and predictions of a binary task are often of one class: no class can be chosen."""
    settings = dict(METHODS[method])
    if settings.get('mix') == dict(type='mmdmt.CutMix'):
        settings['mix'] = dict(type='mmdmt.ClassMix')
    model = build(method, 2, **settings)
    for name in model.network_names:
        torch.nn.init.constant_(model.network(name).decode_head.conv_seg.bias[1:], -50)
    for _ in range(2):  # both shifts of Dual Teacher
        inputs, samples = semi_batch(num_labeled=3, num_classes=1)
        losses = model.loss(inputs, samples)
        assert all(value.isfinite().all() for value in losses.values())
        total(losses).backward()
        model.after_step()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert gradients and all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize('method', METHODS)
def test_any_network_predicts(method):
    for name in build(method).network_names:
        model = build(method, predict_on=name).eval()
        inputs, _ = semi_batch(num_labeled=3)
        with torch.no_grad():
            logits = model(inputs['unsup_weak'], mode='tensor')
            assert torch.equal(logits, model.network(name)(inputs['unsup_weak'], mode='tensor'))
        assert logits.shape[:2] == (3, NUM_CLASSES)


@pytest.mark.parametrize('method', METHODS)
def test_state_makes_the_round_trip(method):
    model, other = build(method), build(method)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    other.load_state_dict(model.state_dict(), strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize('method', PASSES)
def test_a_step_costs_what_the_guide_says(method):
    model, images = build(method), dict(gradient=0, none=0)

    def count(module, args):
        images['gradient' if torch.is_grad_enabled() else 'none'] += len(args[0])

    for name in model.network_names:
        model.network(name).backbone.register_forward_pre_hook(count)
    total(model.loss(*semi_batch(num_labeled=3)))
    assert (images['gradient'] / 3, images['none'] / 3) == PASSES[method]
