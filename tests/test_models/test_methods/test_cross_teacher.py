import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from tiny_models import NUM_CLASSES, tiny_segmentor, unlabeled_samples
from tiny_models import semi_batch as whole_images
from virtual_gpu import NoWaiting

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import CrossTeacher
from mmdmt.models.methods.networks import build_segmentor

CONTRAST = dict(bank=dict(size=4, threshold=0.0), threshold=0.5, anchors_per_class=8)
PROJECTED = dict(CONTRAST, projection=dict(channels=5))
#: Something that is another view of the same image each time.
STRONG = dict(type='mmdmt.StrongAugment', preset='ctt')


def tiny_segformer():
    """A transformer with a feature map of another size and depth than the tiny ResNet's."""
    cfg = tiny_segmentor()
    cfg['backbone'] = dict(
        type='MixVisionTransformer',
        embed_dims=4,
        num_stages=2,
        num_layers=[1, 1],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[2, 1],
        out_indices=(0, 1),
    )
    cfg['decode_head'] = dict(
        cfg['decode_head'], type='SegformerHead', in_channels=[4, 8], in_index=[0, 1], channels=6
    )
    for key in ('num_convs', 'concat_input'):
        cfg['decode_head'].pop(key)
    return cfg


def build(segmentor=None, **settings):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = CrossTeacher(segmentor or tiny_segmentor(dropout=0), **settings)
    model.start_run(max_iters=100)
    # Confident networks, so that thresholds split the pixels.
    for name in model.network_names:
        torch.nn.init.normal_(model.network(name).decode_head.conv_seg.weight, std=2.0)
    return model


def semi_batch(padding=0, **kwargs):
    """A batch whose unlabeled images end in so many padded columns."""
    inputs, samples = whole_images(**kwargs)
    if padding:
        inputs['unsup_valid'][:, :, -padding:] = False
        samples['unsup'] = unlabeled_samples(inputs['unsup_valid'])
    return inputs, samples


class Views(torch.nn.Module):
    """Strong augmentation that gives the views it was made with, one after another."""

    def __init__(self, *views):
        super().__init__()
        self.views = views
        self.calls = 0

    def forward(self, images, valid=None):
        self.calls += 1
        return self.views[self.calls - 1]


def with_views(model, inputs, *views):
    """The views that a model is to draw, as its networks will see them, left first."""
    views = views or [torch.rand_like(inputs['unsup_rgb']) for _ in range(2)]
    model.strong = Views(*views)
    return [model.data_preprocessor.normalize(view) for view in views]


def labels_of(model, side, inputs):
    probs = dense_logits(model.network(f'teacher_{side}'), inputs['unsup_weak']).softmax(1)
    return probs.max(1)


# ------------------------------------------------------------------------------- cross teachers


@pytest.mark.parametrize('taught_by', ['peer', 'own'])
def test_each_student_learns_from_the_other_teacher(taught_by):
    model = build(unsup_weight=2.0, taught_by=taught_by).eval()
    inputs, samples = semi_batch(padding=12)
    valid = inputs['unsup_valid']
    assert not valid.all()
    model.threshold = min(labels_of(model, side, inputs)[0].median().item() for side in 'lr')
    strong = [
        torch.where(valid[:, None], v, inputs['unsup_weak']) for v in with_views(model, inputs)
    ]
    losses = model.loss(inputs, samples)
    assert model.strong.calls == 2
    for side, peer, view in (('l', 'r', strong[0]), ('r', 'l', strong[1])):
        confidence, label = labels_of(model, peer if taught_by == 'peer' else side, inputs)
        share = ((confidence >= model.threshold) & valid).sum() / valid.sum()
        logits = dense_logits(model.network(f'student_{side}'), view)
        ce = F.cross_entropy(logits, label, reduction='none')[valid].mean()
        torch.testing.assert_close(losses[f'unsup_{side}_loss'], 2 * share * ce)
        torch.testing.assert_close(losses[f'unsup_{side}_confident_share'], share)
    assert 0 < min(losses['unsup_l_confident_share'], losses['unsup_r_confident_share']) < 1


def test_padded_pixels_never_count():
    model = build(threshold=0.0, contrast=CONTRAST, strong=STRONG).eval()
    inputs, samples = semi_batch()
    inputs['unsup_valid'][1] = False
    changed = {key: value.clone() for key, value in inputs.items()}
    changed['unsup_rgb'][1], changed['unsup_weak'][1] = 1.0, -9.0
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = model.loss(inputs, samples)
    torch.manual_seed(1)
    found = other.loss(changed, samples)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_strong_views_are_the_students_own():
    model = build(threshold=0.0, strong=STRONG).eval()
    inputs, samples = semi_batch()
    views = model._views(inputs, samples)
    assert not torch.equal(views['l'][0], views['r'][0])
    one, two, three = (torch.rand_like(inputs['unsup_rgb']) for _ in range(3))
    with_views(model, inputs, one, two)
    before = model.loss(inputs, samples)
    with_views(model, inputs, one, three)
    after = model.loss(inputs, samples)
    assert before['unsup_l_loss'] == after['unsup_l_loss']
    assert before['unsup_r_loss'] != after['unsup_r_loss']


def test_no_gradient_crosses_to_the_other_student():
    model = build(threshold=0.0, contrast=PROJECTED).train()
    fill(model)
    losses = model.loss(*semi_batch())
    for side, peer in (('l', 'r'), ('r', 'l')):
        names = (f'sup_{side}.', f'unsup_{side}_', f'contrast_{side}_')
        own = [v for key, v in losses.items() if key.startswith(names) and 'loss' in key]
        assert len(own) == 4
        model.zero_grad()
        sum(own).backward(retain_graph=True)
        for student, reached in ((side, True), (peer, False)):
            for part in (model.network(f'student_{student}'), model.contrast.students[student]):
                grads = [p.grad for p in part.parameters() if p.grad is not None]
                assert any(grad.abs().sum() > 0 for grad in grads) is reached, student
        teachers = [model.teacher_l, model.teacher_r, model.contrast.teachers]
        assert all(p.grad is None for part in teachers for p in part.parameters())


def test_labeled_only_batch_trains_both_students():
    model = build(sup_weight=0.5).eval()
    inputs, samples = semi_batch()
    losses = model.loss(dict(sup=inputs['sup']), samples)
    for side in 'lr':
        plain = model.network(f'student_{side}').loss(inputs['sup'], samples['sup'])
        torch.testing.assert_close(
            losses[f'sup_{side}.decode.loss_ce'], plain['decode.loss_ce'] / 2
        )
    assert not any(key.startswith('unsup') for key in losses)


def test_weight_ramps_up():
    model = build(threshold=0.0, rampup_iters=4).eval()
    inputs, samples = semi_batch()
    full = build(threshold=0.0).eval().loss(inputs, samples)['unsup_l_loss']
    for step, share in enumerate([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]):
        model.step = step
        torch.testing.assert_close(model.loss(inputs, samples)['unsup_l_loss'], share * full)


@pytest.mark.parametrize('padding', [0, 12])
def test_images_may_be_mixed_before_they_are_augmented(padding):
    """As published: whatever the augmentation does, it does to the mixed image."""
    inputs, samples = semi_batch(num_unlabeled=4, padding=padding)
    views, seen = {}, []
    for mix_first in (False, True):
        model = build(mix=dict(type='mmdmt.ClassMix', partner='next'), mix_first=mix_first).eval()
        model.strong = torch.nn.Module()
        model.strong.forward = lambda rgb, valid=None: seen.append(rgb) or 1 - rgb
        torch.manual_seed(2)
        views[mix_first] = model._views(inputs, samples)
    unmixed = [torch.equal(rgb, inputs['unsup_rgb']) for rgb in seen]
    assert unmixed == [True, True, False, False]
    for side in 'lr':  # which differs only where an operation looks at more than one pixel
        torch.testing.assert_close(views[True][side][0], views[False][side][0])
        for one, other in zip(views[True][side][1], views[False][side][1]):
            assert torch.equal(one, other)


@pytest.mark.parametrize('mix', ['mmdmt.ClassMix', 'mmdmt.CutMix'])
@pytest.mark.parametrize('shared', [True, False])
def test_mixed_views_carry_their_labels_along(mix, shared):
    model = build(mix=dict(type=mix, prob=1.0), shared_mix=shared).eval()
    inputs, samples = semi_batch(num_unlabeled=4)
    model.data_preprocessor.normalize = lambda images: images
    # An image whose pixel values are the teacher's labels and confidence, and its number, shows
    # where each pixel came from.
    number = torch.arange(4.0)[:, None, None].expand(-1, 32, 32)
    taught = [labels_of(model, peer, inputs) for peer in 'rl']
    shown = [torch.stack([label.float(), number, trust], 1) for trust, label in taught]
    with_views(model, inputs, *shown)
    views = model._views(inputs, samples)
    for view, targets in views.values():
        assert torch.equal(view[:, 0].long(), targets.label) and targets.valid.all()
        assert torch.equal(view[:, 2], targets.confidence)
    sources = [view[:, 1] for view, _ in views.values()]
    assert any(not torch.equal(source, number) for source in sources), 'nothing was mixed'
    assert torch.equal(*sources) is shared


def test_a_shared_mask_is_made_from_the_labels_of_the_more_confident_teacher():
    model = build(mix=dict(type='mmdmt.ClassMix')).eval()
    inputs, samples = semi_batch()
    seen = []
    draw = model.mix.draw
    model.mix.draw = lambda targets: seen.append(targets.label) or draw(targets)
    model._views(inputs, samples)
    (left, label), (right, other) = (labels_of(model, side, inputs) for side in 'lr')
    assert (left > right).any() and (left < right).any()
    assert len(seen) == 1 and torch.equal(seen[0], torch.where(left > right, label, other))


def test_statistics_are_tensors_that_do_not_enter_the_loss():
    model = build(contrast=CONTRAST).eval()
    _, log = model.parse_losses(model.loss(*semi_batch()))
    for side in 'lr':
        names = {f'unsup_{side}_{what}' for what in ('confident_share', 'agreement', 'confidence')}
        assert names <= set(log)
    parts = sum(value for key, value in log.items() if 'loss' in key and key != 'loss')
    torch.testing.assert_close(log['loss'], parts)


RELEASED = dict(
    mix=dict(type='mmdmt.ClassMix', partner='next'),
    strong=dict(type='mmdmt.StrongAugment', preset='ctt_released'),
    shared_mix=False,
    mix_first=True,
    batch_statistics='separate',
    ema=dict(momentum=0.99, buffers='keep', mode='train'),
    contrast=None,
)


@pytest.mark.parametrize(
    'settings',
    [dict(shared_mix=True), dict(shared_mix=False), dict(RELEASED, strong=None)],
    ids=['shared', 'own', 'released'],
)
def test_nothing_waits_for_the_device(settings):
    """mmseg's own accuracy, a statistic of its heads, does; so the labeled part is left out."""
    model = build(**{'mix': dict(type='mmdmt.ClassMix'), **settings}).train()
    inputs, samples = semi_batch()
    with NoWaiting():
        for side, (view, targets) in model._views(inputs, samples).items():
            logits = dense_logits(model.network(f'student_{side}'), view)
            losses = model._consistency(side, logits, targets)
            losses[f'unsup_{side}_loss'].backward()


def test_the_released_code_is_a_set_of_switches():
    """No contrast, two passes, own masks and views, teachers in train mode whose buffers stay."""
    model = build(**RELEASED).train()
    before, passes = copy.deepcopy(model), []
    model.student_l.backbone.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    inputs, samples = semi_batch()
    losses = model.loss(inputs, samples)
    assert passes == [len(inputs['sup']), len(inputs['unsup_rgb'])]
    assert not any(key.startswith('contrast') for key in losses)
    model.after_step()
    for side in 'lr':
        assert all(module.training for module in model.network(f'teacher_{side}').modules())
        mean = model.network(f'teacher_{side}').backbone.bn1.running_mean
        assert not torch.equal(mean, before.network(f'teacher_{side}').backbone.bn1.running_mean)
        assert not torch.equal(mean, model.network(f'student_{side}').backbone.bn1.running_mean)


# ------------------------------------------------------------------------------------ the networks


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_students_of_one_config_differ_and_teachers_are_their_copies():
    model = build(contrast=PROJECTED)
    model.init_weights()
    assert not same(model.student_l, model.student_r)
    for side in 'lr':
        assert same(model.network(f'student_{side}'), model.network(f'teacher_{side}'))
        assert same(model.contrast.students[side], model.contrast.teachers[side])


def test_seeds_decide_the_initial_weights():
    torch.manual_seed(5)
    one, other = (CrossTeacher(tiny_segmentor(), seeds=seeds) for seeds in ([1, 2], [2, 1]))
    for _ in range(2):  # before and after init_weights
        assert same(one.student_l, other.student_r) and same(one.student_r, other.student_l)
        assert not same(one.student_l, one.student_r)
        one.init_weights()
        other.init_weights()


def test_each_student_may_start_from_a_file_of_its_own(tmp_path):
    pair = dict(l=tiny_segmentor(), r=tiny_segmentor())
    for side, cfg in pair.items():
        with DefaultScope.overwrite_default_scope('mmseg'):
            torch.save(build_segmentor(cfg).state_dict(), tmp_path / f'{side}.pth')
        cfg['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / f'{side}.pth'))
    model = build(pair)
    model.init_weights()
    key = 'decode_head.conv_seg.weight'
    for side in 'lr':
        expected = torch.load(tmp_path / f'{side}.pth', weights_only=True)[key]
        assert torch.equal(model.network(f'student_{side}').state_dict()[key], expected)
        assert torch.equal(model.network(f'teacher_{side}').state_dict()[key], expected)


def test_teachers_follow_their_own_students_with_their_projections():
    model = build(contrast=PROJECTED, ema=dict(momentum=0.9))
    model.init_weights()
    model.step = 100
    before = copy.deepcopy(model)
    with torch.no_grad():
        for p in [*model.student_l.parameters(), *model.contrast.students['l'].parameters()]:
            p.add_(1.0)
    model.after_step()
    key = 'decode_head.conv_seg.weight'
    for new, old in (
        (model.teacher_l.state_dict()[key], before.teacher_l.state_dict()[key]),
        (model.contrast.teachers['l'][0].weight, before.contrast.teachers['l'][0].weight),
    ):
        torch.testing.assert_close(new, old + 0.1)
    assert same(model.teacher_r, before.teacher_r)
    assert same(model.contrast.teachers['r'], before.contrast.teachers['r'])


def test_a_resnet_pairs_with_a_segformer():
    pair = dict(l=tiny_segmentor(dropout=0), r=tiny_segformer())
    model = build(
        pair,
        threshold=0.0,
        mix=dict(type='mmdmt.ClassMix'),
        contrast=dict(PROJECTED, threshold=1.0, low=dict(requires_confident_peer=False)),
    ).train()
    fill(model)
    losses = model.loss(*semi_batch())
    for side in 'lr':
        assert losses[f'contrast_{side}_high_loss'] > 0
        assert losses[f'contrast_{side}_low_loss'] > 0
    _, log = model.parse_losses(losses)
    assert torch.isfinite(log['loss'])
    assert type(model.teacher_r.backbone).__name__ == 'MixVisionTransformer'


def test_a_pair_of_other_channels_needs_a_projection():
    pair = dict(l=tiny_segmentor(), r=tiny_segformer())
    with pytest.raises(ValueError, match=r"'l': 8, 'r': 6.*contrast\.projection=dict"):
        build(pair, contrast=CONTRAST)


def test_each_student_may_have_learning_rates_of_its_own():
    model = build(
        dict(l=tiny_segmentor(), r=tiny_segformer()),
        contrast=PROJECTED,
    )
    keys = {
        'decode_head': dict(lr_mult=10.0),
        'student_r.backbone': dict(lr_mult=0.1),
        'student_r.decode_head': dict(lr_mult=2.0),
    }
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=1.0),
            paramwise_cfg=dict(custom_keys=keys),
        ),
    )
    rate = {id(p): g['lr'] for g in wrapper.optimizer.param_groups for p in g['params']}

    def rates(part):
        return {rate[id(p)] for p in part.parameters()}

    assert rates(model.student_l.backbone) == {1.0}
    assert rates(model.student_l.decode_head) == {10.0}
    assert rates(model.student_r.backbone) == {0.1}
    assert rates(model.student_r.decode_head) == {2.0}
    assert rates(model.contrast.students) == {1.0}


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(threshold=1.5), r'`threshold` must be in \[0, 1\], got 1\.5'),
        (dict(seeds=[1]), r"`seeds` needs one for each of .*'student_r'\], got \[1\]"),
        (dict(taught_by='both'), r"`taught_by` must be one of .* got 'both'"),
        (dict(contrast=dict(CONTRAST, lwo=1)), r"`contrast` has unknown keys \['lwo'\]; .*'low'"),
        (dict(contrast=dict(CONTRAST, classifier='decode_head.x')), 'has no such module'),
        (dict(segmentor=dict(left={}, right={})), r"dict\(l=..., r=...\).*'left', 'right'"),
        (
            dict(segmentor=dict(l=tiny_segmentor(4), r=tiny_segmentor(5))),
            r"same classes.*'student_l': 4, 'student_r': 5",
        ),
    ],
)
def test_bad_settings_are_refused(changes, match):
    changes = dict(changes)
    with pytest.raises(ValueError, match=match):
        build(changes.pop('segmentor', None), **changes)


def test_misspelled_settings_are_refused_with_those_that_exist():
    with pytest.raises(TypeError, match=r"no setting \['treshold'\]; it has .*'threshold'"):
        build(treshold=0.9)


# ------------------------------------------------------------------------------------ contrast


def fill(model):
    """Fill both banks with random features."""
    for bank in model.contrast.banks.values():
        bank.feats.normal_()
        bank.counts.fill_(bank.feats.shape[1])


def test_losses_count_from_full_banks_on():
    model = build(contrast=CONTRAST).eval()
    inputs, samples = semi_batch()
    for bank in model.contrast.banks.values():
        bank.counts.fill_(4)
        bank.feats.normal_()
    model.contrast.banks['r'].counts[2] = 3
    losses = model.loss(inputs, samples)
    assert losses['contrast_on'] == 0
    assert losses['contrast_l_high_loss'] == 0 == losses['contrast_r_low_loss']
    fill(model)
    losses = model.loss(inputs, samples)
    assert losses['contrast_on'] == 1
    assert losses['contrast_l_high_loss'] > 0 and losses['contrast_r_high_loss'] > 0


def test_half_precision_trains_with_contrast():
    model = build(threshold=0.0, contrast=PROJECTED).train()
    fill(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*semi_batch())
    total = sum(value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert torch.isfinite(total) and model.contrast.banks['l'].feats.dtype == torch.float32
    for part in (model.student_l, model.contrast.students):
        assert all(torch.isfinite(p.grad).all() for p in part.parameters())


def test_banks_learn_labeled_pixels_of_their_own_teacher():
    model = build(contrast=dict(CONTRAST, bank=dict(size=3, threshold=0.0, per_class=2))).eval()
    inputs, samples = semi_batch()
    model.loss(inputs, samples)
    for side in 'lr':
        counts = model.contrast.banks[side].counts
        assert 0 < counts.sum() <= 2 * NUM_CLASSES
    assert not torch.equal(model.contrast.banks['l'].feats, model.contrast.banks['r'].feats)


def test_plain_checkpoint_goes_into_every_network():
    model = build(contrast=CONTRAST)
    plain = copy.deepcopy(model.student_l).state_dict()
    plain = {key: torch.randn(value.shape).to(value) for key, value in plain.items()}
    missing, unexpected = model.load_state_dict(dict(plain), strict=False)
    assert not unexpected and all(key.startswith('contrast.') for key in missing)
    for name in model.network_names:
        assert torch.equal(
            model.network(name).decode_head.conv_seg.weight, plain['decode_head.conv_seg.weight']
        )


def test_checkpoints_hold_banks_and_steps():
    model = build(contrast=PROJECTED)
    fill(model)
    model.after_step()
    other = build(contrast=PROJECTED)
    other.load_state_dict(model.state_dict())
    assert same(model, other) and other.step == 1
    assert other.contrast.started() == 1
