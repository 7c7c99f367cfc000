import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import AugSeg
from mmdmt.models.views import reliability

MIX = dict(type='mmdmt.AdaptiveCutMix')
STRONG = dict(type='mmdmt.RandomIntensityAugment')


def build(segmentor=None, pass_iters=(2, 3), **settings):
    torch.manual_seed(0)
    model = AugSeg(segmentor or tiny_segmentor(dropout=0), **settings)
    model.start_run(10, pass_iters)
    return model


def test_the_loss_is_that_of_the_paper(monkeypatch):
    """supervised + sum over confident pixels / all pixels, ground truth of 255 left out."""
    model = build(mix=MIX).eval()
    inputs, samples = semi_batch(num_unlabeled=2)
    for sample in samples['sup']:
        sample.gt_sem_seg.data[:, :, :16] = 255
    inputs['unsup_valid'][:, 28:] = False
    for sample in samples['unsup']:
        sample.set_metainfo(dict(padding_size=(0, 0, 0, 4)))
    weak = inputs['unsup_weak']
    taught = dense_logits(model.teacher, weak)
    confidence, label = taught.softmax(1).max(1)
    model.threshold.value = confidence.median().item()
    seen, mix = [], model.mix.forward
    monkeypatch.setattr(
        model.mix, 'forward', lambda *args: seen.append((args, mix(*args))) or seen[-1][1]
    )
    monkeypatch.setattr(model.mix, 'labeled', (1.0, 3.0))  # large boxes
    losses = model.loss(inputs, samples)
    (args, (view, targets)) = seen[0]
    assert torch.equal(args[0], weak) and torch.equal(args[1].label, label)
    torch.testing.assert_close(args[1].confidence, confidence)
    torch.testing.assert_close(args[2], reliability(taught, inputs['unsup_valid']))
    assert torch.equal(args[3], inputs['sup'])
    truth = torch.stack([sample.gt_sem_seg.data[0] for sample in samples['sup']])
    assert torch.equal(args[4], truth)
    logits = dense_logits(model.student, view)
    total, kept = 0.0, 0
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(32), torch.arange(32)).tolist():
        i, y, x = place
        if targets.valid[i, y, x] and targets.confidence[i, y, x] >= model.threshold.value:
            total += F.cross_entropy(logits[i, :, y, x][None], targets.label[i, y, x][None])
            kept += 1
    assert 0 < kept < targets.valid.sum()
    assert not targets.valid.all()
    torch.testing.assert_close(losses['unsup_loss'], total / (2 * 32 * 32))
    torch.testing.assert_close(losses['unsup_keep_ratio'], kept / targets.valid.sum())
    plain = model.student.loss(inputs['sup'], samples['sup'])
    torch.testing.assert_close(losses['sup_decode.loss_ce'], plain['decode.loss_ce'])
    torch.testing.assert_close(losses['unsup_reliability'], args[2].mean())
    assert {'unsup_agreement', 'unsup_confidence'} <= set(losses)


def test_the_teacher_is_a_copy_in_the_first_pass_over_the_unlabeled_images():
    model = build(ema=dict(momentum=0.9), pass_iters=(7, 3))
    equal = []
    for step in range(6):
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter.add_(1.0)
            model.student.backbone.bn1.running_mean.fill_(step)
        before = next(model.teacher.parameters()).clone()
        model.after_step()
        student, teacher = (next(net.parameters()) for net in (model.student, model.teacher))
        equal.append(torch.equal(student, teacher))
        if step >= 3:
            a = min(1 - 1 / (step + 1), 0.9)
            torch.testing.assert_close(teacher, a * before + (1 - a) * student)
        else:
            assert (model.teacher.backbone.bn1.running_mean == step).all()
    assert equal == [True] * 3 + [False] * 3


@pytest.mark.parametrize(('copy_iters', 'expected'), [(0, 1), (5, 5)])
def test_how_long_it_is_a_copy_is_a_setting(copy_iters, expected):
    """The first update is a copy in any case, as with all teachers."""
    model = build(copy_iters=copy_iters)
    copies = 0
    for _ in range(8):
        copies += model.ema.momentum_at(model.teacher_step('teacher')) == 0
        model.after_step()
    assert copies == expected


def test_a_resumed_run_goes_on_alike():
    def advance(model, steps):
        optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
        for _ in range(steps):
            torch.manual_seed(model.step)
            losses = model.loss(*semi_batch())
            optimizer.zero_grad()
            sum(value for key, value in losses.items() if 'loss' in key).backward()
            optimizer.step()
            model.after_step()

    settings = dict(mix=MIX, strong=STRONG, threshold=0.3)
    whole = build(**settings).train()
    advance(whole, 2)
    other = build(**settings).train()
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    advance(whole, 3)
    advance(other, 3)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize('extra_weak', [False, True])
def test_the_weak_view_passes_for_the_statistics_alone(extra_weak):
    model = build(mix=MIX, strong=STRONG, extra_weak=extra_weak, threshold=0.0).train()
    inputs, samples = semi_batch(num_labeled=2, num_unlabeled=3)
    passes = []
    model.student.backbone.register_forward_hook(lambda _, args, __: passes.append(args[0]))
    losses = model.loss(inputs, samples)
    assert [len(each) for each in passes] == [8 if extra_weak else 5]
    assert torch.equal(passes[0][:2], inputs['sup'])
    assert torch.equal(passes[0][2:5], inputs['unsup_weak']) == extra_weak
    assert losses['unsup_keep_ratio'] == 1 and losses['unsup_loss'] > 0


@pytest.mark.parametrize('segmentor', [tiny_segmentor(2, auxiliary=True), tiny_segformer()])
def test_the_gradient_reaches_the_student_alone(segmentor):
    model = build(segmentor, mix=MIX, strong=STRONG, threshold=0.0).train()
    losses = model.loss(*semi_batch(num_classes=model.num_classes))
    losses['unsup_loss'].backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert sum(p.grad.abs().sum() for p in model.student.parameters() if p.grad is not None) > 0


def test_half_precision_logits_give_a_float32_loss():
    model = build(mix=MIX, strong=STRONG, threshold=0.0).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*semi_batch())
    assert losses['unsup_loss'].dtype == torch.float32 and losses['unsup_loss'].isfinite()
    assert losses['unsup_reliability'].dtype == torch.float32


def test_every_network_predicts():
    model = build(predict_on='teacher').eval()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.1)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(image), model.teacher(image))
    with model.predicting_on('student'):
        assert torch.equal(model(image), model.student(image))


def test_without_mixing_it_is_a_mean_teacher_over_all_pixels():
    model = build(threshold=0.0).eval()
    inputs, samples = semi_batch()
    losses = model.loss(inputs, samples)
    weak = inputs['unsup_weak']
    label = dense_logits(model.teacher, weak).argmax(1)
    expected = F.cross_entropy(dense_logits(model.student, weak), label)
    torch.testing.assert_close(losses['unsup_loss'], expected)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(mix=dict(type='mmdmt.CutMix')), 'AdaptiveCutMix'),
        (dict(copy_iters=-1), 'copy_iters'),
        (dict(ema=dict(warmup=False)), 'copy_iters=0'),
        (dict(copy_epochs=1), r"no setting \['copy_epochs'\].*'copy_iters'"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises((TypeError, ValueError), match=match):
        build(**settings)
    assert build(copy_iters=0, ema=dict(warmup=False)).copy_iters == 0
