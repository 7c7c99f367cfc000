import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import MeanTeacher


def build(**settings):
    torch.manual_seed(0)
    return MeanTeacher(tiny_segmentor(dropout=0), **settings)


def test_unsupervised_loss_is_the_cross_entropy_on_confident_pixels():
    model = build(unsup_weight=2.0).eval()
    inputs, samples = semi_batch()
    inputs['unsup_valid'][:, :, 20:] = False
    probs = dense_logits(model.teacher, inputs['unsup_weak']).softmax(1)
    confidence, label = probs.max(1)
    threshold = model.threshold.value = confidence.median().item()
    losses = model.loss(inputs, samples)
    valid = inputs['unsup_valid']
    kept = (confidence >= threshold) & valid
    assert 0 < kept.sum() < valid.sum()
    ce = F.cross_entropy(dense_logits(model.student, inputs['unsup_weak']), label, reduction='none')
    torch.testing.assert_close(losses['unsup_loss'], 2 * (ce * kept).sum() / valid.sum())
    torch.testing.assert_close(losses['unsup_keep_ratio'], kept.sum() / valid.sum())


def test_padded_pixels_never_count():
    """Whatever lies under the padding changes neither the loss nor the statistics."""
    model = build(threshold=0.0).eval()
    inputs, samples = semi_batch()
    inputs['unsup_valid'][1] = False
    changed = {key: value.clone() for key, value in inputs.items()}
    changed['unsup_weak'][1] = -9.0
    changed['unsup_rgb'][1] = 0.5
    for key, value in model.loss(inputs, samples).items():
        torch.testing.assert_close(model.loss(changed, samples)[key], value, msg=key)


def test_no_confident_pixel_gives_zero_loss_with_a_gradient():
    model = build(threshold=1.0).train()
    inputs, samples = semi_batch()
    losses = model.loss(inputs, samples)
    assert losses['unsup_loss'].item() == 0 and losses['unsup_keep_ratio'].item() == 0
    losses['unsup_loss'].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.student.parameters())


def test_labeled_only_batch_gives_the_supervised_loss():
    model = build(sup_weight=0.5).eval()
    inputs, samples = semi_batch()
    losses = model.loss(dict(sup=inputs['sup']), samples)
    plain = model.student.loss(inputs['sup'], samples['sup'])
    torch.testing.assert_close(losses['sup_decode.loss_ce'], 0.5 * plain['decode.loss_ce'])
    assert not any(key.startswith('unsup') for key in losses)


def test_weight_ramps_up():
    model = build(threshold=0.0, rampup_iters=4).eval()
    inputs, samples = semi_batch()
    full = build(threshold=0.0).eval().loss(inputs, samples)['unsup_loss']
    for step, share in enumerate([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]):
        model.step = step
        torch.testing.assert_close(model.loss(inputs, samples)['unsup_loss'], share * full)


def test_mixed_views_carry_labels_along(monkeypatch):
    """With CutMix the student's targets are the teacher's labels, cut from the same pixels."""
    model = build(threshold=0.0, mix=dict(type='mmdmt.CutMix', prob=1.0)).eval()
    inputs, samples = semi_batch()
    # An image whose pixel values are the teacher's labels shows where each pixel came from.
    label = dense_logits(model.teacher, inputs['unsup_weak']).argmax(1)
    picture = label[:, None].float().expand(-1, 3, -1, -1).contiguous()
    monkeypatch.setattr(model, 'strong_view', lambda *args: picture)
    seen = {}

    def watch(logits, targets, *args):
        seen['targets'] = targets
        return logits.sum(), {}

    def forward_student(name, inputs, samples, view):
        seen['view'] = view
        return {}, view

    monkeypatch.setattr(model, 'consistency', watch)
    monkeypatch.setattr(model, 'forward_student', forward_student)
    model.loss(inputs, samples)
    assert torch.equal(seen['view'][:, 0].long(), seen['targets'].label)
    assert not torch.equal(seen['view'], picture) and seen['targets'].valid.all()


def test_a_threshold_may_adapt():
    model = build(threshold=dict(type='mmdmt.AdaptiveThreshold', init=0.5, momentum=0.5)).train()
    model.start_run(4)
    model(*semi_batch(), mode='loss')
    assert model.state_dict()['threshold.value'] != 0.5


def test_statistics_are_tensors_that_do_not_enter_the_loss():
    model = build().eval()
    _, log = model.parse_losses(model.loss(*semi_batch()))
    assert {'unsup_keep_ratio', 'unsup_agreement', 'unsup_confidence'} <= set(log)
    parts = sum(value for key, value in log.items() if 'loss' in key and key != 'loss')
    torch.testing.assert_close(log['loss'], parts)
