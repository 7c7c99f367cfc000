import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from tiny_models import semi_batch, tiny_segformer, tiny_segmentor, unlabeled_samples
from virtual_gpu import NoWaiting

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import U2PL

MIX = dict(type='mmdmt.CutMix', prob=1.0, boxes='half', partner='next')
CONTRAST = dict(
    weight=1.0, anchors_per_class=8, queue_size=32, keys_per_class=8, projection=dict(channels=4)
)


def build(segmentor=None, **settings):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = U2PL(segmentor or tiny_segmentor(dropout=0), **settings)
    model.start_run(max_iters=100)
    # Networks that differ and have opinions.
    for name in model.network_names:
        torch.nn.init.normal_(model.network(name).decode_head.conv_seg.weight, std=2.0)
    return model


def padded_batch():
    inputs, samples = semi_batch()
    inputs['unsup_valid'][:, :, -12:] = False
    samples['unsup'] = unlabeled_samples(inputs['unsup_valid'])
    return inputs, samples


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize('normalizer', ['kept', 'valid'])
def test_pixels_of_low_entropy_are_learned(normalizer, monkeypatch):
    model = build(mix=MIX, unsup_weight=2.0, drop_percent=40, normalizer=normalizer).eval()
    model.step = 25
    inputs, samples = padded_batch()
    drawn, draw = [], model.mix.draw
    monkeypatch.setattr(model.mix, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    before = copy.deepcopy(model.teacher)
    losses = model.loss(inputs, samples)
    weak = inputs['unsup_weak']
    view, confidence, label, valid = drawn[0](
        weak, *dense_logits(before.eval(), weak).softmax(1).max(1), inputs['unsup_valid']
    )
    logits = dense_logits(before.train(), torch.cat([inputs['sup'], view]))[2:]
    prob = logits.detach().softmax(1).numpy()
    entropy = -(prob * np.log(prob)).sum(1)
    valid = valid.numpy()
    assert not valid.all()
    kept = (entropy < np.percentile(entropy[valid], 100 - 40 * 0.75)) & valid
    student = dense_logits(model.student, view)
    ce = F.cross_entropy(student, label, reduction='none')[torch.tensor(kept)]
    expected = (
        ce.mean() * kept.size / kept.sum() if normalizer == 'kept' else ce.sum() / valid.sum()
    )
    torch.testing.assert_close(losses['unsup_loss'], 2 * expected)
    share = kept.sum() / valid.sum()
    assert share == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(losses['unsup_keep_ratio'].item(), share)
    agreed = (student.argmax(1) == label).numpy()[valid].mean()
    assert losses['unsup_agreement'].item() == pytest.approx(agreed)
    assert losses['unsup_confidence'].item() == pytest.approx(confidence.detach()[valid].mean())


def test_the_dropped_share_falls_linearly_to_zero():
    model = build(drop_percent=20)
    for step, share in ((0, 0.2), (25, 0.15), (50, 0.1), (100, 0.0)):
        model.step = step
        assert model.drop_share() == pytest.approx(share)


def test_contrast_gets_certain_and_uncertain_pixels_of_the_teachers_second_pass(monkeypatch):
    model = build(drop_percent=25, contrast=CONTRAST).eval()
    inputs, samples = padded_batch()
    seen = {}

    def contrast(student, teacher, pixels):
        seen.update(student=student, teacher=teacher, pixels=pixels)
        return {}

    monkeypatch.setattr(model.contrast, 'forward', contrast)
    before = copy.deepcopy(model.teacher)
    model.loss(inputs, samples)
    weak, valid = inputs['unsup_weak'], inputs['unsup_valid']
    images, label = torch.cat([inputs['sup'], weak]), dense_logits(before.eval(), weak).argmax(1)
    with model.contrast.tap(before.train()) as teacher:
        logits = dense_logits(before, images)[2:].detach()
    torch.testing.assert_close(seen['teacher'].logits, teacher.logits)
    torch.testing.assert_close(seen['teacher'].features, teacher.features)
    assert not seen['teacher'].features.requires_grad and seen['student'].features.requires_grad
    with model.contrast.tap(model.student) as student:
        dense_logits(model.student, images)
    torch.testing.assert_close(seen['student'].features, student.features)
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, 3)).entropy()
    low, high = np.percentile(entropy[valid].numpy(), [25, 75])
    pixels = seen['pixels']
    assert torch.equal(pixels.certain, (entropy <= low) & valid)
    assert torch.equal(pixels.uncertain, (entropy >= high) & valid)
    assert torch.equal(pixels.label, label)
    truth = torch.stack([each.gt_sem_seg.data[0] for each in samples['sup']])
    assert torch.equal(pixels.sup_label, truth)


def test_padding_never_counts():
    model = build(mix=None, contrast=CONTRAST).eval()
    inputs, samples = semi_batch()
    inputs['unsup_valid'][1] = False
    samples['unsup'] = unlabeled_samples(inputs['unsup_valid'])
    # Statistics of the batch would carry what is in the padding elsewhere.
    model.teacher.train = lambda mode=True: model.teacher
    changed = dict(inputs, unsup_weak=inputs['unsup_weak'].clone())
    changed['unsup_weak'][1] = -9.0
    results = []
    for batch in (inputs, changed):
        torch.manual_seed(1)
        results.append(copy.deepcopy(model).loss(batch, samples))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, msg=key)


def test_the_teacher_labels_in_eval_mode_and_collects_statistics_in_its_second_pass():
    model = build(mix=MIX, contrast=CONTRAST).train()
    before = copy.deepcopy(model)
    inputs, samples = semi_batch()
    modes = []
    model.teacher.backbone.bn1.register_forward_hook(
        lambda module, args, output: modes.append((module.training, len(args[0])))
    )
    losses = model.loss(inputs, samples)
    assert modes == [(False, 3), (True, 5)]
    assert not any(module.training for module in model.teacher.modules())
    # In one pass the labels would be those of batch statistics.
    mean = model.teacher.backbone.bn1.running_mean
    assert not torch.equal(mean, before.teacher.backbone.bn1.running_mean)
    assert model.teacher.backbone.bn1.num_batches_tracked == 1
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(each.grad is None for each in model.teacher.parameters())
    assert all(each.grad is not None for each in model.student.parameters())
    assert all(each.grad is not None for each in model.contrast.student.parameters())
    # The moving average leaves the statistics alone.
    kept = mean.clone()
    model.step = 5
    model.after_step()
    assert torch.equal(model.teacher.backbone.bn1.running_mean, kept)


def test_averaged_buffers_may_be_asked_for():
    assert build().ema.buffers == 'keep'
    assert build(ema=dict(momentum=0.9)).ema.buffers == 'keep'
    assert build(ema=dict(buffers='ema')).ema.buffers == 'ema'


def test_copied_buffers_are_the_statistics_of_the_students_domain():
    model = build(mix=MIX, batch_statistics='domain', ema=dict(buffers='copy')).train()
    model.loss(*semi_batch())
    own = model.teacher.backbone.bn1.running_mean.clone()
    model.after_step()
    expected = model.student.backbone.bn1.running_mean
    assert torch.equal(model.teacher.backbone.bn1.running_mean, expected)
    assert not torch.equal(own, expected)


def test_until_it_starts_the_teacher_is_the_student():
    model = build(mix=MIX, contrast=CONTRAST, sup_only=0.03).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    inputs, samples = semi_batch()
    for step in range(5):
        losses = model.loss(inputs, samples)
        assert ('unsup_loss' in losses) is (step >= 3)
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        # All of them, or processes that train together would wait for the others.
        assert all(
            each.grad is not None for group in optimizer.param_groups for each in group['params']
        )
        optimizer.step()
        model.after_step()
        if step < 3:
            assert same(model.teacher, model.student)
            assert same(model.contrast.teacher, model.contrast.student)
            assert losses['contrast_loss'] == 0 == model.contrast.queue.total.sum()
    # The count starts there: after the first semi-supervised step (update 0) both were equal, and
    # the second (update 1) took half of the way.
    assert model.ema.momentum_at(model.teacher_step('teacher') - 1) == 0.5
    assert not same(model.teacher, model.student)
    assert model.contrast.queue.total.sum() > 0


def test_the_representation_follows_with_the_teacher():
    model = build(contrast=CONTRAST, ema=dict(momentum=0.9))
    model.init_weights()
    model.step = 50
    before = copy.deepcopy(model.contrast.teacher[0].weight)
    with torch.no_grad():
        model.contrast.student[0].weight += 1.0
    model.after_step()
    torch.testing.assert_close(model.contrast.teacher[0].weight, before + 0.1)


@pytest.mark.parametrize('classes', [2, 3, 4, 12])
@pytest.mark.parametrize('segmentor', [tiny_segmentor, tiny_segformer])
def test_contrast_teaches_any_network_with_any_number_of_classes(segmentor, classes):
    model = build(segmentor(num_classes=classes), mix=MIX, contrast=CONTRAST).train()
    losses = model.loss(*semi_batch(num_classes=classes))
    assert losses['contrast_loss'] > 0 and losses['contrast_classes'] > 0
    losses['contrast_loss'].backward()
    assert sum(each.grad.abs().sum() for each in model.contrast.student.parameters()) > 0
    assert model.student.decode_head.conv_seg.weight.grad is None
    assert sum(p.grad.abs().sum() for p in model.student.backbone.parameters()) > 0


def test_without_contrast_nothing_of_it_is_there():
    model = build(mix=MIX).train()
    losses = model.loss(*semi_batch())
    assert 'unsup_loss' in losses and not any(key.startswith('contrast') for key in losses)
    assert not any(key.startswith('contrast') for key in model.state_dict())


def test_half_precision_trains():
    model = build(mix=MIX, contrast=CONTRAST).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*semi_batch())
    assert losses['unsup_loss'].dtype == losses['contrast_loss'].dtype == torch.float32
    total = sum(value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_nothing_waits_for_the_device(monkeypatch):
    """mmseg's own loss and accuracy do; so those of the labeled images are left out."""
    model = build(mix=MIX, contrast=CONTRAST).train()
    head = model.student.decode_head
    monkeypatch.setattr(head, 'loss_by_feat', lambda logits, samples: dict(loss=logits.mean()))
    inputs, samples = semi_batch()
    with NoWaiting():
        losses = model.loss(inputs, samples)
        sum(value for key, value in losses.items() if 'loss' in key).backward()


def test_checkpoints_hold_queues_representations_and_steps():
    model = build(mix=MIX, contrast=CONTRAST).train()
    batch = semi_batch()
    model.loss(*batch)
    model.after_step()
    other = build(mix=MIX, contrast=CONTRAST).train()
    other.load_state_dict(model.state_dict())
    assert same(model, other) and other.step == 1
    assert other.contrast.queue.total.sum() > 0
    found = []
    for each in (model, other):
        torch.manual_seed(3)
        found.append(each.loss(*batch))
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value), key
    assert same(model, other)


def test_every_network_predicts():
    model = build().eval()
    inputs, _ = semi_batch()
    for name in ('student', 'teacher'):
        with model.predicting_on(name):
            logits = model(inputs['unsup_weak'])
        torch.testing.assert_close(logits, model.network(name)(inputs['unsup_weak']))
    assert model.predict_on == 'teacher'


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(drop_percent=120), r'`drop_percent` must be in \[0, 100\], got 120'),
        (dict(sup_only=3), r'`sup_only` must be in \[0, 1\], got 3'),
        (dict(normalizer='no'), r"`normalizer` must be one of .* got 'no'"),
        (dict(contrast=dict(negative=1)), r"`contrast` has unknown keys \['negative'\]"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        build(**settings)
