"""Dual Teachers that train in milliseconds, and what their students see."""

import torch
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.methods import DualTeacher

STRONG = dict(type='mmdmt.StrongAugment', preset='dual_teacher')


def build(segmentor=None, method=DualTeacher, shift_length=2, strong=STRONG, **settings):
    """A model whose networks differ, as they do in the middle of training."""
    torch.manual_seed(0)
    segmentor = segmentor or tiny_segmentor(dropout=0)
    return method(segmentor, shift_length=shift_length, strong=strong, **settings)


def padded_batch():
    """The last 12 columns of all unlabeled images are padding."""
    torch.manual_seed(1)
    inputs, samples = semi_batch(num_labeled=3)
    inputs['unsup_valid'][:, :, 20:] = False
    for sample in samples['unsup']:
        sample.set_metainfo(dict(padding_size=(0, 12, 0, 0)))
    inputs['unsup_weak'][..., 20:] = inputs['unsup_rgb'][..., 20:] = 0
    return inputs, samples


def seen_by_the_student(model, inputs, samples):
    """The mixed view, and the view of implicit consistency."""
    seen = []
    hook = model.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.loss(inputs, samples)
    hook.remove()
    return seen[0][len(inputs['sup']) :], seen[1]


def nudge(model):
    """An optimizer step: all that matters is that the student moves."""
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
