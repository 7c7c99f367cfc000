import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from virtual_gpu import NoWaiting

from mmdmt.models.losses.contrast import functional as L
from mmdmt.models.losses.contrast.cross_contrast import (
    CrossContrast,
    HighLevel,
    LowLevel,
    View,
    build_part,
)
from mmdmt.models.losses.contrast.memory_bank import TeacherBank

CLASSES, CHANNELS = 3, 6
#: More anchors than there are pixels: nothing is left to chance.
ALL = dict(anchors_per_class=100)
BANK = dict(size=5, threshold=0.5)


class Network(nn.Module):
    """What is read of a segmentor; its images are pixel features already."""

    out_channels = CLASSES

    def __init__(self, channels=CHANNELS):
        super().__init__()
        self.decode_head = nn.Module()
        self.decode_head.conv_seg = nn.Conv2d(channels, CLASSES, 1)

    def encode_decode(self, images, metas):
        return self.decode_head.conv_seg(images)


def build(bank=None, **settings):
    torch.manual_seed(0)
    networks = dict(l=Network(), r=Network())
    module = CrossContrast(networks, bank=dict(BANK, **(bank or {})), **{**ALL, **settings})
    for each in module.banks.values():
        each.feats.normal_()
        each.counts.fill_(each.feats.shape[1])
    return module


def view(seed, size=(4, 4), labeled=2, unlabeled=2):
    """What a student saw: maps of labels are twice as large as its features."""
    gen = torch.Generator().manual_seed(seed)
    height, width = 2 * size[0], 2 * size[1]

    def blocks(values):
        return values.repeat_interleave(2, 1).repeat_interleave(2, 2)

    count = labeled + unlabeled
    valid = torch.ones(unlabeled, height, width, dtype=torch.bool)
    valid[0, -2:] = False
    sup_label = torch.randint(0, CLASSES, (labeled, *size), generator=gen)
    sup_label[0, 0] = 255
    return View(
        feat=torch.randn(count, CHANNELS, *size, generator=gen).requires_grad_(),
        logits=2 * torch.randn(count, CLASSES, *size, generator=gen),
        sup_label=blocks(sup_label),
        label=blocks(torch.randint(0, CLASSES, (unlabeled, *size), generator=gen)),
        confidence=blocks(torch.rand(unlabeled, *size, generator=gen)),
        valid=valid,
    )


def views(**kwargs):
    return dict(l=view(1, **kwargs), r=view(2, **kwargs))


def small(maps):
    return maps[:, ::2, ::2]


def test_paper_values_are_the_defaults():
    expected = {
        CrossContrast: dict(threshold=0.75, start=1.0, projection=None),
        HighLevel: dict(temperature=0.1),
        LowLevel: dict(temperature=0.5, requires_confident_peer=True),
        TeacherBank: dict(size=256, threshold=0.95, threshold_on='prob'),
    }
    for part, values in expected.items():
        parameters = inspect.signature(part).parameters
        assert {name: parameters[name].default for name in values} == values


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(start=2), r'`contrast\.start` must be in \[0, 1\], got 2'),
        (dict(threshold=-1), r'`contrast\.threshold` must be in'),
        (dict(anchors_per_class=0), r'`contrast\.anchors_per_class` must be in \[1, inf\], got 0'),
        (dict(high=dict(weight=-1)), r'`contrast\.high\.weight` must be in \[0, inf\], got -1'),
        (dict(high=dict(temperature=0)), r'`contrast\.high\.temperature` must be in .* got 0'),
        (dict(low=dict(weight=-1)), r'`contrast\.low\.weight` must be in'),
        (dict(low=dict(temperature=0)), r'`contrast\.low\.temperature` must be in .* got 0'),
        (dict(low=dict(peer_threshold=2)), r'`contrast\.low\.peer_threshold` must be in'),
        (dict(bank=dict(sync='no')), r"`contrast\.bank\.sync` must be one of .* got 'no'"),
        (dict(bank=dict(threshold_on='x')), r'`contrast\.bank\.threshold_on` must be one of'),
        (dict(bank=dict(size=0)), r'`contrast\.bank\.size` must be in \[1, inf\], got 0'),
        (dict(bank=dict(per_class=0)), r'`contrast\.bank\.per_class` must be in'),
        (
            dict(high=dict(wait=1)),
            r"`contrast\.high` has unknown keys \['wait'\]; known: .*'weight'",
        ),
        (dict(low=dict(peer=1)), r"`contrast\.low` has unknown keys .*'requires_confident_peer'"),
        (dict(bank=dict(channels=1)), r"`contrast\.bank` has unknown keys .*known: \['per_class'"),
        (dict(classifier='decode_head.x'), 'Module has no such module'),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        build(**settings)


def test_misspelled_settings_are_refused_with_those_that_exist():
    networks = dict(l=Network(), r=Network())
    with pytest.raises(ValueError, match=r"`contrast` has unknown keys \['lwo'\]; .*'low'"):
        build_part('contrast', CrossContrast, dict(lwo={}), networks)


def test_features_of_other_lengths_need_a_projection():
    networks = dict(l=Network(), r=Network(channels=4))
    with pytest.raises(ValueError, match=r"'l': 6, 'r': 4.*contrast\.projection=dict"):
        CrossContrast(networks)
    module = CrossContrast(networks, projection=dict(channels=5))
    assert [module.students[side][0].in_features for side in 'lr'] == [6, 4]


@pytest.mark.parametrize(('side', 'peer'), [('l', 'r'), ('r', 'l')])
def test_high_level_pulls_labeled_and_confident_pixels_to_the_own_bank(side, peer):
    module, seen = build(high=dict(weight=2.0), threshold=0.4), views()
    own = seen[side]
    label = torch.cat([small(own.sup_label), small(own.label)])
    confident = small((own.confidence >= 0.4) & own.valid)
    mask = torch.cat([small(own.sup_label) != 255, confident])
    assert 0 < confident.sum() < confident.numel()
    expected = L.memory_contrast_loss(own.feat, label, mask, module.banks[side].feats, 0.1)
    found = module(seen)[f'contrast_{side}_high_loss']
    torch.testing.assert_close(found, 2 * expected)
    found.backward()
    assert own.feat.grad is not None and seen[peer].feat.grad is None


@pytest.mark.parametrize('required', [True, False])
@pytest.mark.parametrize(('side', 'peer'), [('l', 'r'), ('r', 'l')])
def test_low_level_pulls_other_pixels_to_the_more_confident_peer(side, peer, required):
    module = build(low=dict(weight=3.0, requires_confident_peer=required), threshold=0.6)
    seen = views()
    own, other = seen[side], seen[peer]
    mine = own.logits[2:].softmax(1).amax(1)
    confidence, label = other.logits[2:].softmax(1).max(1)
    mask = small((own.confidence < 0.6) & own.valid)
    if required:
        mask &= confidence > mine
    assert 0 < mask.sum() < mask.numel()
    bank = torch.cat([module.banks[side].feats, module.banks[peer].feats], dim=1)
    expected = L.peer_contrast_loss(own.feat[2:], other.feat[2:], label, mask, bank, 0.5)
    found = module(seen)[f'contrast_{side}_low_loss']
    torch.testing.assert_close(found, 3 * expected)
    found.backward()
    assert other.feat.grad is None
    assert own.feat.grad[:2].abs().sum() == 0 < own.feat.grad[2:].abs().sum()


def test_the_peer_may_need_a_confidence_of_its_own():
    """Published for DeepLabV3+."""
    seen = views()
    off = build(low=dict(peer_threshold=1.0))(seen)
    assert off['contrast_l_low_loss'] == 0 == off['contrast_r_low_loss']
    assert build(low=dict(peer_threshold=0.5))(seen)['contrast_l_low_loss'] > 0


@pytest.mark.parametrize(('level', 'other'), [('high', 'low'), ('low', 'high')])
def test_each_module_can_be_switched_off(level, other):
    losses = build(**{level: dict(weight=0)})(views())
    for side in 'lr':
        assert f'contrast_{side}_{level}_loss' not in losses
        assert losses[f'contrast_{side}_{other}_loss'] > 0


def test_peer_features_of_another_size_are_resampled():
    seen = dict(l=view(1), r=view(2, size=(8, 8)))
    # The same scene: label maps have the size of the images.
    seen['r'] = seen['r']._replace(
        **{
            name: F.interpolate(getattr(seen['l'], name)[:, None].float(), scale_factor=2)[:, 0].to(
                getattr(seen['l'], name).dtype
            )
            for name in ('sup_label', 'label', 'confidence', 'valid')
        }
    )
    losses = build(low=dict(requires_confident_peer=False))(seen)
    assert losses['contrast_l_low_loss'] > 0 and losses['contrast_r_low_loss'] > 0


def test_projections_are_trained_and_those_of_the_peer_are_not():
    module = build(projection=dict(channels=4, hidden=5))
    assert module.banks['l'].feats.shape[2] == 4
    seen = views()
    module(seen)['contrast_l_low_loss'].backward()
    assert all(p.grad is not None for p in module.students['l'].parameters())
    assert all(p.grad is None for p in module.students['r'].parameters())
    assert not any(p.requires_grad for p in module.teachers.parameters())


# ---------------------------------------------------------------------------------------- start


def test_start_is_the_share_of_classes_full_in_both_banks():
    module = build()
    assert module.started() == 1
    module.banks['l'].counts[0] = 4
    assert module.started() == 0
    module.start = 2 / 3
    assert module.started() == 1
    module.banks['r'].counts[1] = 0
    assert module.started() == 0
    module.start = 1 / 3
    assert module.started() == 1


def test_rows_without_a_feature_have_no_influence():
    module = build(start=0.0)
    module.banks['l'].counts.copy_(torch.tensor([5, 2, 0]))
    before = module(views())
    for row, count in zip(module.banks['l'].feats, module.banks['l'].counts):
        row[count:] = 7.0
    for key, value in module(views()).items():
        torch.testing.assert_close(value, before[key], msg=key)
    assert before['contrast_on'] == 1 and before['contrast_l_high_loss'] > 0


def test_nothing_counts_before_the_start_and_gradients_are_zero():
    module, seen = build(), views()
    module.banks['r'].counts.zero_()
    losses = module(seen)
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert losses['contrast_on'] == 0
    for side in 'lr':
        assert (seen[side].feat.grad == 0).all()


# ----------------------------------------------------------------------------------------- banks


def test_banks_take_projected_features_of_the_teacher():
    module = build(projection=dict(channels=4), bank=dict(per_class=3))
    module.banks['l'].counts.zero_()
    feat, sup_label = view(5).feat[:2].detach(), view(5).sup_label
    label = small(sup_label)
    # The first channels of the features decide the class.
    feat[:, :CLASSES] = 20 * F.one_hot(label.clamp(max=2), CLASSES).movedim(3, 1).float()
    teacher = Network()
    with torch.no_grad():
        teacher.decode_head.conv_seg.weight.copy_(torch.eye(CLASSES, CHANNELS)[..., None, None])
    module.remember('l', teacher, feat, sup_label)
    assert module.banks['l'].counts.tolist() == [3, 3, 3]
    rows = module.teachers['l'](feat.movedim(1, 3)[label == 1])
    for row in module.banks['l'].feats[1, :3]:
        assert (row - rows).norm(dim=1).min() < 1e-5


@pytest.mark.parametrize('threshold_on', ['prob', 'logit'])
def test_bank_threshold_on_logits_is_the_released_code(threshold_on):
    """There nearly every correct pixel is admitted."""
    bank = TeacherBank(CLASSES, CHANNELS, threshold_on=threshold_on)
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.tensor([1.5, 0.5, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    bank.remember(torch.randn(1, CHANNELS, 2, 2), logits, label, nn.Identity())
    assert bank.counts[0] == (1 if threshold_on == 'logit' else 0)


@pytest.mark.parametrize(('per_class', 'expected'), [(None, 3), (5, 5)])
def test_as_many_pixels_enter_a_bank_as_there_are_labeled_images(per_class, expected):
    bank = TeacherBank(CLASSES, CHANNELS, threshold=0, per_class=per_class)
    logits = F.one_hot(torch.zeros(3, 2, 2, dtype=torch.long), CLASSES).movedim(3, 1).float()
    label = torch.zeros(3, 2, 2, dtype=torch.long)
    bank.remember(torch.randn(3, CHANNELS, 2, 2), logits, label, nn.Identity())
    assert bank.counts.tolist() == [expected, 0, 0]


# ------------------------------------------------------------------------------------------ cost


def test_the_cost_does_not_grow_with_the_images(monkeypatch):
    rows = []
    similarities = L._similarities

    def counted(anchor, *args):
        rows.append(len(anchor))
        return similarities(anchor, *args)

    monkeypatch.setattr(L, '_similarities', counted)
    module = build(anchors_per_class=4)
    for size in ((4, 4), (16, 24)):
        rows.clear()
        module(views(size=size))
        assert len(rows) == 4 and 0 < max(rows) <= 4 * CLASSES  # two losses of two students


def all_rows(chosen, *rows):
    return rows  # as on a GPU


def test_rows_that_are_no_anchors_are_left_out_on_a_cpu_and_change_nothing(monkeypatch):
    counts, found = [], []
    rows_of, compact = L._losses_of_rows, L._compact

    def counted(anchors, *args):
        counts.append(len(anchors))
        return rows_of(anchors, *args)

    monkeypatch.setattr(L, '_losses_of_rows', counted)
    for rows in (compact, all_rows):
        monkeypatch.setattr(L, '_compact', rows)
        seen = views()
        for view in seen.values():
            view.feat.requires_grad_()
        torch.manual_seed(0)
        losses = build()(seen)
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        found.append([*losses.values(), *(view.feat.grad for view in seen.values())])
    assert all(few < many for few, many in zip(counts[:4], counts[4:]))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_similarities_are_held_a_chunk_at_a_time(monkeypatch):
    expected = build()(views())
    sizes, kept = [], []
    similarities = L._similarities

    def counted(anchor, *args):
        found = similarities(anchor, *args)
        sizes.append(found.numel())
        return found

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    monkeypatch.setattr(L, '_similarities', counted)
    monkeypatch.setattr(L, '_MAX_SIMILARITIES', 200)
    seen = views()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = build()(seen)
    assert max(sizes) <= 200 and len(sizes) > 8
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, msg=key)
    forward = len(sizes)
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert len(sizes) == forward, 'similarities are computed again for the backward pass'
    assert max(kept) <= 3 * 100 * CHANNELS, 'similarities are kept, not rows of features'


def test_nothing_waits_for_the_device(monkeypatch):
    monkeypatch.setattr(L, '_compact', all_rows)
    module, seen = build(start=0.5, projection=dict(channels=4)), views()
    teacher = Network()
    with NoWaiting():
        losses = module(seen)
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        module.remember('l', teacher, seen['l'].feat[:2], seen['l'].sup_label)
    with pytest.raises(AssertionError, match='waits for the device'), NoWaiting():
        seen['l'].feat.sum().item()
