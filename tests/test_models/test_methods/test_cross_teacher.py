import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from no_waiting import NoWaiting
from tiny_models import NUM_CLASSES, semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import CrossTeacher
from mmdmt.models.methods.base import build_segmentor

CONTRAST = dict(bank_size=4, bank_threshold=0.0, threshold=0.5, anchors_per_class=8)
PROJECTED = dict(CONTRAST, projection=dict(channels=5))


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


def build(segmentor=None, **train_cfg):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = CrossTeacher(segmentor or tiny_segmentor(dropout=0), semi_train_cfg=train_cfg)
    model.teacher_hook_attached = True
    # Confident networks, so that thresholds split the pixels.
    for name in model.network_names:
        torch.nn.init.normal_(model.network(name).decode_head.conv_seg.weight, std=2.0)
    return model


def batch(**kwargs):
    inputs, samples = semi_batch(**kwargs)
    inputs['unsup_strong_1'] = torch.randn_like(inputs['unsup_strong'])
    return inputs, samples


def labels_of(model, side, inputs):
    probs = dense_logits(model.teacher(side), inputs['unsup_weak']).softmax(1)
    return probs.max(1)


# ------------------------------------------------------------------------------- cross teachers


@pytest.mark.parametrize('taught_by', ['peer', 'own'])
def test_each_student_learns_from_the_other_teacher(taught_by):
    model = build(unsup_weight=2.0, taught_by=taught_by).eval()
    inputs, samples = batch()
    inputs['unsup_valid'][:, :, 20:] = False
    valid = inputs['unsup_valid']
    model.threshold = min(labels_of(model, side, inputs)[0].median().item() for side in 'lr')
    losses = model.loss(inputs, samples)
    for side, peer, view in (('l', 'r', 'unsup_strong'), ('r', 'l', 'unsup_strong_1')):
        confidence, label = labels_of(model, peer if taught_by == 'peer' else side, inputs)
        share = ((confidence >= model.threshold) & valid).sum() / valid.sum()
        logits = dense_logits(model.student(side), inputs[view])
        ce = F.cross_entropy(logits, label, reduction='none')[valid].mean()
        torch.testing.assert_close(losses[f'unsup_{side}_loss'], 2 * share * ce)
        torch.testing.assert_close(losses[f'unsup_{side}_confident_share'], share)
    assert 0 < min(losses['unsup_l_confident_share'], losses['unsup_r_confident_share']) < 1


def test_padded_pixels_never_count():
    model = build(threshold=0.0, contrast=CONTRAST).eval()
    inputs, samples = batch()
    inputs['unsup_valid'][1] = False
    changed = {key: value.clone() for key, value in inputs.items()}
    changed['unsup_strong'][1], changed['unsup_weak'][1] = 9.0, -9.0
    other = copy.deepcopy(model)
    found, expected = other.loss(changed, samples), model.loss(inputs, samples)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_strong_views_are_the_students_own():
    model = build(threshold=0.0).eval()
    inputs, samples = batch()
    before = model.loss(inputs, samples)
    inputs['unsup_strong_1'] = inputs['unsup_strong_1'] + 1
    after = model.loss(inputs, samples)
    assert before['unsup_l_loss'] == after['unsup_l_loss']
    assert before['unsup_r_loss'] != after['unsup_r_loss']


def test_no_gradient_crosses_to_the_other_student():
    model = build(threshold=0.0, contrast=PROJECTED).train()
    fill(model)
    losses = model.loss(*batch())
    for side, peer in (('l', 'r'), ('r', 'l')):
        names = (f'sup_{side}.', f'unsup_{side}_', f'contrast_{side}_')
        own = [v for key, v in losses.items() if key.startswith(names) and 'loss' in key]
        assert len(own) == 4
        model.zero_grad()
        sum(own).backward(retain_graph=True)
        for student, reached in ((side, True), (peer, False)):
            for part in (model.student(student), model.contrast.students[student]):
                grads = [p.grad for p in part.parameters() if p.grad is not None]
                assert any(grad.abs().sum() > 0 for grad in grads) is reached, student
        teachers = [model.teacher('l'), model.teacher('r'), model.contrast.teachers]
        assert all(p.grad is None for part in teachers for p in part.parameters())


def test_labeled_only_batch_trains_both_students():
    model = build(sup_weight=0.5).eval()
    inputs, samples = batch()
    losses = model.loss(dict(sup=inputs['sup']), samples)
    for side in 'lr':
        plain = model.student(side).loss(inputs['sup'], samples['sup'])
        torch.testing.assert_close(
            losses[f'sup_{side}.decode.loss_ce'], plain['decode.loss_ce'] / 2
        )
    assert not any(key.startswith('unsup') for key in losses)


def test_weight_ramps_up():
    model = build(threshold=0.0, rampup_iters=4).eval()
    inputs, samples = batch()
    full = build(threshold=0.0).eval().loss(inputs, samples)['unsup_l_loss']
    for step, share in enumerate([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]):
        model._ema_steps = [step, step]
        torch.testing.assert_close(model.loss(inputs, samples)['unsup_l_loss'], share * full)


@pytest.mark.parametrize('mix', ['mmdmt.ClassMix', 'mmdmt.CutMix'])
@pytest.mark.parametrize('shared', [True, False])
def test_mixed_views_carry_their_labels_along(mix, shared):
    model = build(mix=dict(type=mix, prob=1.0), shared_mix=shared).eval()
    inputs, _ = batch(num_unlabeled=4)
    # An image whose pixel values are the teacher's labels, and its number, shows where each pixel
    # came from.
    number = torch.arange(4.0)[:, None, None].expand(-1, 32, 32)
    for peer, view in (('r', 'unsup_strong'), ('l', 'unsup_strong_1')):
        label = labels_of(model, peer, inputs)[1].float()
        inputs[view] = torch.stack([label, number, number], dim=1)
    views = model._strong_views_and_targets(inputs)
    for strong, (label, _, valid) in views.values():
        assert torch.equal(strong[:, 0].long(), label) and valid.all()
    sources = [strong[:, 1] for strong, _ in views.values()]
    assert any(not torch.equal(source, number) for source in sources), 'nothing was mixed'
    assert torch.equal(*sources) is shared


def test_statistics_are_tensors_that_do_not_enter_the_loss():
    model = build(contrast=CONTRAST).eval()
    _, log = model.parse_losses(model.loss(*batch()))
    for side in 'lr':
        names = {f'unsup_{side}_{what}' for what in ('confident_share', 'agreement', 'confidence')}
        assert names <= set(log)
    parts = sum(value for key, value in log.items() if 'loss' in key and key != 'loss')
    torch.testing.assert_close(log['loss'], parts)


@pytest.mark.parametrize('shared', [True, False])
def test_nothing_waits_for_the_device(shared):
    """mmseg's own accuracy, a statistic of its heads, does; so the labeled part is left out."""
    model = build(mix=dict(type='mmdmt.ClassMix'), shared_mix=shared).train()
    inputs, _ = batch()
    with NoWaiting():
        for side, (strong, targets) in model._strong_views_and_targets(inputs).items():
            losses = model._consistency(side, dense_logits(model.student(side), strong), *targets)
            losses[f'unsup_{side}_loss'].backward()


def test_the_published_code_is_a_set_of_switches():
    """No contrast, masks and views of their own, teachers in train mode whose buffers stay."""
    model = build(
        mix=dict(type='mmdmt.ClassMix', partner='shuffle'),
        shared_mix=False,
        teacher_mode='train',
        ema=dict(momentum=0.99, buffers='keep'),
        contrast=None,
    ).train()
    before = copy.deepcopy(model)
    losses = model.loss(*batch())
    assert not any(key.startswith('contrast') for key in losses)
    model.update_teachers()
    for side in 'lr':
        assert all(module.training for module in model.teacher(side).modules())
        mean = model.teacher(side).backbone.bn1.running_mean
        assert not torch.equal(mean, before.teacher(side).backbone.bn1.running_mean)
        assert not torch.equal(mean, model.student(side).backbone.bn1.running_mean)


# ------------------------------------------------------------------------------------ the networks


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_students_of_one_config_differ_and_teachers_are_their_copies():
    model = build(contrast=PROJECTED)
    model.init_weights()
    assert not same(model.student_l, model.student_r)
    for side in 'lr':
        assert same(model.student(side), model.teacher(side))
        assert same(model.contrast.students[side], model.contrast.teachers[side])


def test_seeds_decide_the_initial_weights():
    torch.manual_seed(5)
    one = CrossTeacher(tiny_segmentor(), dict(seeds=[1, 2]))
    one.init_weights()
    other = CrossTeacher(tiny_segmentor(), dict(seeds=[2, 1]))
    other.init_weights()
    assert same(one.student_l, other.student_r) and same(one.student_r, other.student_l)
    assert not same(one.student_l, one.student_r)


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
        assert torch.equal(model.student(side).state_dict()[key], expected)
        assert torch.equal(model.teacher(side).state_dict()[key], expected)


def test_teachers_follow_their_own_students_with_their_projections():
    model = build(contrast=PROJECTED, ema=dict(momentum=0.9))
    model.init_weights()
    model._ema_steps = [100, 100]
    before = copy.deepcopy(model)
    with torch.no_grad():
        for p in [*model.student_l.parameters(), *model.contrast.students['l'].parameters()]:
            p.add_(1.0)
    model.update_teachers()
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
        contrast=dict(
            CONTRAST, threshold=1.0, requires_surer_peer=False, projection=dict(channels=5)
        ),
    ).train()
    fill(model)
    losses = model.loss(*batch())
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
        (dict(threshold=1.5), r'`semi_train_cfg\.threshold` must be in'),
        (dict(treshold=0.9), r"unknown keys \['treshold'\]; known: .*'threshold'"),
        (dict(seeds=[1]), r'seeds` must be two seeds, got \[1\]'),
        (dict(taught_by='both'), r"taught_by` must be one of .* got 'both'"),
        (dict(contrast=dict(CONTRAST, start=2)), r'contrast\.start` must be in'),
        (dict(contrast=dict(CONTRAST, low_weight=-1)), r'contrast\.low_weight` must be >= 0'),
        (dict(contrast=dict(CONTRAST, bank_sync='no')), r"bank_sync` must be one of .* 'no'"),
        (dict(contrast=dict(CONTRAST, anchors_per_class=0)), 'anchors_per_class` must be pos'),
        (dict(contrast=dict(CONTRAST, classifier='decode_head.x')), 'has no such module'),
        (dict(segmentor=dict(left={}, right={})), r"dict\(l=..., r=...\).*'left', 'right'"),
        (
            dict(segmentor=dict(l=tiny_segmentor(4), r=tiny_segmentor(5))),
            r"same classes.*'l': 4, 'r': 5",
        ),
    ],
)
def test_bad_settings_are_refused(changes, match):
    changes = dict(changes)
    with pytest.raises(ValueError, match=match):
        build(changes.pop('segmentor', None), **changes)


def test_a_single_strong_view_is_refused():
    preprocessor = dict(type='mmdmt.SemiDataPreprocessor', size=(32, 32))
    with pytest.raises(ValueError, match=r'data_preprocessor\.num_strong` is 1: set it to 2'):
        CrossTeacher(tiny_segmentor(), data_preprocessor=preprocessor)
    CrossTeacher(tiny_segmentor(), data_preprocessor=dict(preprocessor, num_strong=2))


# ------------------------------------------------------------------------------------ contrast


def fill(model):
    """Fill both banks with random features."""
    for bank in model.contrast.banks.values():
        bank.feats.normal_()
        bank.counts.fill_(bank.feats.shape[1])


def test_losses_count_from_full_banks_on():
    model = build(contrast=CONTRAST).eval()
    inputs, samples = batch()
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
        losses = model.loss(*batch())
    total = sum(value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert torch.isfinite(total) and model.contrast.banks['l'].feats.dtype == torch.float32
    for part in (model.student_l, model.contrast.students):
        assert all(torch.isfinite(p.grad).all() for p in part.parameters())


def test_banks_learn_labeled_pixels_of_their_own_teacher():
    model = build(contrast=dict(CONTRAST, bank_size=3, per_class=2)).eval()
    inputs, samples = batch()
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
    model.update_teachers()
    other = build(contrast=PROJECTED)
    other.load_state_dict(model.state_dict())
    assert same(model, other) and other._ema_steps == [1, 1]
    assert other.contrast.started() == 1
