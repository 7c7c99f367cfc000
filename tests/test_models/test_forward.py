import torch
from tiny_models import labeled_samples, tiny_segmentor, unlabeled_samples

from mmdmt.models.forward import (
    Targets,
    dense_logits,
    has_joint_forward,
    is_padded,
    joint_forward,
    pseudo_label,
    weighted_losses,
)
from mmdmt.models.methods.base import build_segmentor


def batch():
    torch.manual_seed(1)
    labels = torch.randint(0, 4, (2, 32, 32))
    return torch.randn(2, 3, 32, 32), labeled_samples(labels), torch.randn(3, 3, 32, 32)


def test_pseudo_labels_lie_on_the_pixels_of_their_input():
    """Labels of a flipped, non-square input are the flipped labels, at the input's size."""
    model = build_segmentor(tiny_segmentor()).eval()
    images = torch.randn(2, 3, 24, 40)
    mask = torch.ones(2, 24, 40, dtype=torch.bool)
    label, confidence, valid = pseudo_label(model, images, mask)
    assert label.shape == confidence.shape == (2, 24, 40) and valid is mask
    torch.testing.assert_close(confidence, dense_logits(model, images).softmax(1).amax(1))
    assert not confidence.requires_grad


def test_joint_forward_equals_two_forwards_in_eval_mode():
    model = build_segmentor(tiny_segmentor(auxiliary=True)).eval()
    sup, samples, unsup = batch()
    losses, logits = joint_forward(model, sup, samples, unsup)
    expected = model.loss(sup, samples)
    assert losses.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(losses[key], expected[key])
    torch.testing.assert_close(logits, dense_logits(model, unsup))
    losses, logits = joint_forward(model, sup, samples, unsup, with_sup=True)
    torch.testing.assert_close(losses['decode.loss_ce'], expected['decode.loss_ce'])
    torch.testing.assert_close(logits, dense_logits(model, torch.cat([sup, unsup])))


def test_labels_outside_the_images_are_ignored():
    label = torch.tensor([[[1, 2], [0, 255]]])
    valid = torch.tensor([[[True, False], [True, True]]])
    targets = Targets(label, torch.ones(1, 2, 2), valid)
    assert targets.label_with_ignore().tolist() == [[[1, 255], [0, 255]]]
    assert targets.label_with_ignore(ignore_index=9).tolist() == [[[1, 9], [0, 255]]]


def test_dense_heads_need_one_forward_of_the_backbone(monkeypatch):
    model = build_segmentor(tiny_segmentor())
    calls = []
    original = model.extract_feat
    monkeypatch.setattr(model, 'extract_feat', lambda x: calls.append(len(x)) or original(x))
    joint_forward(model, *batch())
    assert calls == [5]


def test_heads_with_a_loss_of_their_own_get_two_forwards(monkeypatch):
    model = build_segmentor(tiny_segmentor()).eval()
    sup, samples, unsup = batch()
    head_type = type(model.decode_head)
    assert has_joint_forward(model)
    own = type(
        'OwnLossHead', (head_type,), dict(loss=lambda self, *args: head_type.loss(self, *args))
    )
    model.decode_head.__class__ = own
    assert not has_joint_forward(model)
    losses, logits = joint_forward(model, sup, samples, unsup)
    assert losses['decode.loss_ce'] > 0
    torch.testing.assert_close(logits, dense_logits(model, unsup))
    _, logits = joint_forward(model, sup, samples, unsup, with_sup=True)
    torch.testing.assert_close(logits, dense_logits(model, torch.cat([sup, unsup])))


def test_weights_apply_to_losses_only():
    values = {'decode.loss_ce': torch.tensor(2.0), 'decode.acc_seg': torch.tensor(50.0)}
    weighted = weighted_losses(values, 0.5, 'sup_')
    assert weighted == {'sup_decode.loss_ce': 1.0, 'sup_decode.acc_seg': 50.0}


def test_padding_is_known_from_the_samples():
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    assert not is_padded(unlabeled_samples(valid))
    valid[1, :, 6:] = False
    assert is_padded(unlabeled_samples(valid))


def test_labeling_with_a_student_leaves_its_statistics_alone_and_a_teacher_keeps_its_own():
    """A student in training mode labels by batch statistics; the running ones do not move."""
    mask = torch.ones(2, 32, 32, dtype=torch.bool)
    for is_student in (True, False):
        model = build_segmentor(tiny_segmentor()).train().requires_grad_(is_student)
        before = {key: value.clone() for key, value in model.named_buffers()}
        pseudo_label(model, torch.randn(2, 3, 32, 32), mask)
        moved = [key for key, value in model.named_buffers() if not torch.equal(value, before[key])]
        assert bool(moved) is not is_student


def test_heads_that_branch_on_training_give_dense_logits_in_training_mode():
    cfg = tiny_segmentor()
    loss = dict(type='CrossEntropyLoss', avg_non_ignore=True)
    cfg['backbone'] = dict(type='DDRNet', channels=8, ppm_channels=8, norm_cfg=dict(type='BN'))
    cfg['decode_head'] = dict(
        type='DDRHead', in_channels=32, channels=8, num_classes=4, loss_decode=[loss, loss]
    )
    model = build_segmentor(cfg).train()
    images = torch.randn(2, 3, 64, 64)
    logits = dense_logits(model, images)
    assert logits.shape == (2, 4, 64, 64)
    assert all(module.training for module in model.modules())
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.num_batches_tracked == 1, 'layers inside are trained'
    losses, unsup = joint_forward(model, images, labeled_samples(torch.zeros(2, 64, 64)), images)
    assert unsup.shape == logits.shape and any('loss' in key for key in losses)


def test_with_statistics_of_a_domain_logits_of_labeled_images_collect_nothing():
    segmentor = build_segmentor(tiny_segmentor(dropout=0)).train()
    reference = build_segmentor(tiny_segmentor(dropout=0)).train()
    reference.load_state_dict(segmentor.state_dict())
    sup, samples, unsup = batch()
    _, logits = joint_forward(
        segmentor, sup + 5, samples, unsup, with_sup=True, batch_statistics='domain'
    )
    alone = dense_logits(reference, unsup)
    assert len(logits) == 5
    torch.testing.assert_close(logits[2:], alone)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(segmentor.state_dict()[key], value)
