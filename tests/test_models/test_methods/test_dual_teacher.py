import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_dual_teacher import build, nudge, padded_batch, seen_by_the_student, weights
from tiny_models import NUM_CLASSES, semi_batch, tiny_segformer, tiny_segmentor

from mmdmt.models.forward import Targets, dense_logits
from mmdmt.models.views import Mixing

GOLDEN = Path(__file__).resolve().parents[2] / 'data' / 'golden' / 'dual_teacher_0.npz'
PLAIN = [dict(per_image=True), dict(per_image=False)]


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return semi_batch(num_labeled=3)


def labels_of(model, inputs, name='teacher_0'):
    """What a teacher predicts, computed in another way."""
    confidence, label = dense_logits(model.network(name), inputs['unsup_weak']).softmax(1).max(1)
    return label, confidence


# ---------------------------------------------------------------------------------------- losses


def test_mixed_loss_of_both_kinds_of_shift(batch):
    model = build(
        shifts=PLAIN, shift_length=1, unsup_weight=2.0, consistency_weight=0, strong=None
    ).eval()
    inputs, samples = batch
    for index, per_image in enumerate([True, False]):
        model.step = index
        label, confidence = labels_of(model, inputs, f'teacher_{index}')
        model.threshold.value = confidence.median().item()
        confident = (confidence >= model.threshold.value).float().flatten(1).mean(1)
        weight = confident.view(-1, 1, 1) if per_image else confident.mean()
        logits = dense_logits(model.student, inputs['unsup_weak'])
        expected = (weight * F.cross_entropy(logits, label, reduction='none')).mean()
        losses = model.loss(inputs, samples)
        assert confident.min() > 0 and confident.max() < 1
        torch.testing.assert_close(losses['unsup_mixed_loss'], 2 * expected)
        torch.testing.assert_close(losses['unsup_confident_share'], confident.mean())
        assert losses['on_duty'].item() == index


def test_implicit_consistency_counts_confident_pixels_over_valid_ones():
    inputs, samples = padded_batch()
    model = build(shifts=PLAIN, strong=None, sub_model=None).eval()
    label, confidence = labels_of(model, inputs)
    model.threshold.value = confidence.median().item()
    valid = inputs['unsup_valid']
    kept = (confidence >= model.threshold.value) & valid
    logits = dense_logits(model.student, inputs['unsup_weak'])
    ce = F.cross_entropy(logits, label, reduction='none')
    losses = model.loss(inputs, samples)
    assert 0 < kept.sum() < valid.sum()
    torch.testing.assert_close(
        losses['unsup_consistency_loss'], 0.2 * (ce * kept).sum() / valid.sum()
    )
    torch.testing.assert_close(losses['unsup_keep_ratio'], kept.sum() / valid.sum())
    torch.testing.assert_close(losses['unsup_confidence'], confidence[valid].mean())
    agree = (logits.argmax(1) == label) & valid
    torch.testing.assert_close(losses['unsup_agreement'], agree.sum() / valid.sum())


def test_losses_of_the_step_have_the_golden_values():
    """The method hands logits, labels, confidence and weights to the losses as published."""
    with np.load(GOLDEN) as file:
        golden = {
            key: torch.from_numpy(value) if value.ndim else value.item()
            for key, value in file.items()
        }
    threshold = golden['threshold']
    model = build(shifts=PLAIN, consistency_weight=1.0)
    label, confidence = golden['cutmix_label'].long(), golden['cutmix_confidence']
    targets = Targets(label, confidence, torch.ones_like(label, dtype=torch.bool))
    found = model.mixed_loss(golden['cutmix_student_logits'], targets, threshold, per_image=True)
    assert found['unsup_mixed_loss'].item() == pytest.approx(golden['cutmix_loss'], rel=1e-5)

    confidence, label = golden['teacher_logits'].softmax(1).max(1)
    before = Targets(label, confidence, torch.ones_like(label, dtype=torch.bool))
    mixing = Mixing(golden['classmix_mask'].bool(), golden['classmix_perm'])
    logits = golden['classmix_student_logits']
    found = model.mixed_loss(logits, Targets(*mixing(*before)), threshold, per_image=False)
    assert found['unsup_mixed_loss'].item() == pytest.approx(golden['classmix_loss'], rel=1e-5)
    weight = found['unsup_confident_share'].item()
    assert weight == pytest.approx(golden['classmix_weight'], rel=1e-5)

    model.sub_model_logits = lambda images: golden['student_logits']
    targets = Targets(label, confidence, golden['valid'].bool())
    found = model.consistency(None, targets, threshold, {})
    assert found['unsup_consistency_loss'].item() == pytest.approx(golden['ic_loss'], rel=1e-5)


def test_padded_pixels_never_count_and_keep_their_value():
    """What the views make of the padding changes neither losses nor what the student sees."""
    inputs, samples = padded_batch()
    model = build(shift_length=1, threshold=0.3).train()
    changed = dict(inputs, unsup_rgb=inputs['unsup_rgb'].clone())
    changed['unsup_rgb'][..., 20:] = 0.7
    for model.step in (0, 1):
        torch.manual_seed(3)
        expected = model.loss(inputs, samples)
        torch.manual_seed(3)
        for key, value in model.loss(changed, samples).items():
            torch.testing.assert_close(value, expected[key], msg=key)
        mixed, strong = seen_by_the_student(model, changed, samples)
        assert (strong[..., 20:] == 0).all() and (strong[..., :20] != 0).any()
        # A flip moves the padding to the left.
        blank = (mixed == 0).all(1).float().mean(1)
        assert (blank[:, 20:] == 1).all(1).logical_or((blank[:, :12] == 1).all(1)).all()


def test_black_padding_is_black_in_what_the_student_sees():
    segmentor = tiny_segmentor(dropout=0)
    segmentor['data_preprocessor']['padding'] = 'black'
    model = build(segmentor, strong=None)
    rgb, valid = torch.rand(2, 3, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
    valid[:, :, 5:] = False
    found = model.normalized(rgb, valid)
    black = model.data_preprocessor.normalize(torch.zeros(1, 3, 1, 1))
    assert (found[..., 5:] == black).all()
    assert torch.equal(found[..., :5], model.data_preprocessor.normalize(rgb)[..., :5])


def test_an_adaptive_threshold_serves_both_losses(batch):
    threshold = dict(type='mmdmt.AdaptiveThreshold', init=0.0, momentum=0.0)
    model = build(threshold=threshold, shifts=[{}]).train()
    losses = model.loss(*batch)
    _, confidence = labels_of(model, batch[0])
    share = (confidence >= model.threshold.value).float().mean()
    assert 0 < share < 1
    torch.testing.assert_close(losses['unsup_keep_ratio'], share)
    torch.testing.assert_close(losses['unsup_confident_share'], share)


def test_nothing_confident_gives_zero_loss_with_a_gradient(batch):
    model = build(threshold=1.0).train()
    losses = model.loss(*batch)
    total = losses['unsup_mixed_loss'] + losses['unsup_consistency_loss']
    assert total.item() == 0 and losses['unsup_keep_ratio'].item() == 0
    total.backward()
    assert all(
        torch.isfinite(p.grad).all() for p in model.student.parameters() if p.grad is not None
    )


def test_labeled_only_batch_gives_the_supervised_loss(batch):
    model = build(sup_weight=0.5).eval()
    inputs, samples = batch
    losses = model.loss(dict(sup=inputs['sup']), samples)
    plain = model.student.loss(inputs['sup'], samples['sup'])
    torch.testing.assert_close(losses['sup_decode.loss_ce'], 0.5 * plain['decode.loss_ce'])
    assert not any(key.startswith('unsup') for key in losses)


def test_weights_ramp_up_over_the_steps_of_the_student_not_of_a_teacher(batch):
    settings = dict(shifts=PLAIN, threshold=0.0, sub_model=None, strong=None, shift_length=1)
    model, full = build(rampup_iters=4, **settings).eval(), build(**settings).eval()
    for step, share in enumerate([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]):
        model.step = full.step = step
        found, expected = model.loss(*batch), full.loss(*batch)
        for key in ('unsup_mixed_loss', 'unsup_consistency_loss'):
            torch.testing.assert_close(found[key], share * expected[key])


def test_statistics_are_tensors_that_do_not_enter_the_loss(batch):
    model = build().eval()
    _, log = model.parse_losses(model.loss(*batch))
    assert {'unsup_confident_share', 'unsup_agreement', 'unsup_confidence', 'on_duty'} <= set(log)
    parts = sum(value for key, value in log.items() if 'loss' in key and key != 'loss')
    torch.testing.assert_close(log['loss'], parts)


# ------------------------------------------------------------------------------------ the passes


def count_passes(model):
    """Images per forward pass of each backbone, as they happen."""
    passes = []
    for name in model.network_names:
        model.network(name).backbone.register_forward_hook(
            lambda _, args, __, name=name: passes.append((name, len(args[0])))
        )
    return passes


@pytest.mark.parametrize('settings', [{}, dict(shifts=PLAIN)])
def test_a_step_is_three_passes(batch, settings):
    model = build(**settings).train()
    passes = count_passes(model)
    for model.step, teacher in ((0, 'teacher_0'), (2, 'teacher_1')):
        model.loss(*batch)
        # Three labeled and three mixed images together, the strong view, the teacher's weak view.
        assert sorted(passes) == [('student', 3), ('student', 6), (teacher, 3)]
        passes.clear()


def test_implicit_consistency_without_weight_costs_no_pass(batch):
    model = build(consistency_weight=0).train()
    passes = count_passes(model)
    losses = model.loss(*batch)
    assert sorted(passes) == [('student', 6), ('teacher_0', 3)]
    assert 'unsup_consistency_loss' not in losses
    _, confidence = labels_of(model, batch[0])
    torch.testing.assert_close(losses['unsup_confidence'], confidence.mean())


def test_only_the_student_gets_gradients(batch):
    model = build(threshold=0.0).train()
    loss, _ = model.parse_losses(model.loss(*batch))
    loss.backward()
    assert all(p.grad is not None for p in model.student.parameters())
    for name in model.teacher_names:
        assert all(p.grad is None for p in model.network(name).parameters())


def test_nothing_in_a_step_reads_a_tensor_back(batch, monkeypatch):
    """Readbacks would make the host wait for the device; the CPU draws are lists of their own."""

    def refuse(*args, **kwargs):
        raise AssertionError('the step reads a tensor back')

    model = build().train()
    for name in ('item', 'cpu', 'numpy', '__bool__', '__float__', '__int__'):
        original = getattr(torch.Tensor, name)
        # Only what is as large as images or labels, or comes out of a network, may be on a device.
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *args, original=original: (
                refuse() if self.requires_grad or self.numel() > 64 else original(self, *args)
            ),
        )
    for model.step in (0, 2):
        assert model.loss(*batch)['on_duty'].shape == ()


def test_mixed_precision_gives_nearly_the_same_losses(batch):
    model = build(threshold=0.3).train()
    for model.step in (0, 2):
        torch.manual_seed(2)
        expected = model.loss(*batch)
        torch.manual_seed(2)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = model.loss(*batch)
        for key in ('sup_decode.loss_ce', 'unsup_mixed_loss', 'unsup_consistency_loss'):
            assert found[key].dtype == torch.float32
            torch.testing.assert_close(found[key], expected[key], rtol=0.1, atol=0.02)


def test_heads_with_a_loss_of_their_own_get_a_pass_more(batch):
    """Their labeled images cannot share a pass with unlabeled ones."""
    cfg = tiny_segmentor(dropout=0)
    cfg['type'] = 'CascadeEncoderDecoder'
    head = cfg['decode_head']
    ocr = dict(head, type='OCRHead', in_channels=16, ocr_channels=8)
    for key in ('num_convs', 'concat_input'):
        ocr.pop(key)
    cfg.update(num_stages=2, decode_head=[head, ocr])
    model = build(cfg).train()
    passes = count_passes(model)
    loss, _ = model.parse_losses(model.loss(*batch))
    loss.backward()
    student = [('student', 3)] * 3
    assert sorted(passes) == [*student, ('teacher_0', 3)]


# ------------------------------------------------------------------------------------ the shifts


@pytest.mark.parametrize(
    ('teachers', 'expected'),
    [
        (2, [(0, 0), (1, 1), (0, 0), (1, 1), (0, 0)]),
        (3, [(0, 0), (1, 1), (2, 0), (0, 1), (1, 0)]),
        (1, [(0, 0), (0, 1), (0, 0), (0, 1), (0, 0)]),
    ],
)
def test_shifts_take_turns_like_teachers(batch, teachers, expected):
    """Two teachers have an augmentation of their own each; one teacher works both shifts."""
    model = build(num_teachers=teachers, shift_length=3).train()
    used = []
    for index, shift in enumerate(model.shifts):
        shift.mix.register_forward_hook(lambda *_, index=index: used.append(index))
    for number, (teacher, shift) in enumerate(expected):
        for model.step in (3 * number, 3 * number + 2):
            assert model.teachers_to_update() == [f'teacher_{teacher}']
            assert model.loss(*batch)['on_duty'].item() == teacher
            assert used[-1] == shift
    assert [type(shift.mix).__name__ for shift in model.shifts] == ['CutMix', 'ClassMix']


def test_the_view_that_is_mixed_is_configurable(batch):
    inputs, samples = batch
    for view in ('weak', 'strong'):
        model = build(shifts=[dict(view=view)]).train()
        model.strong.forward = lambda rgb, valid: 1 - rgb
        mixed, strong = seen_by_the_student(model, inputs, samples)
        inverted = model.data_preprocessor.normalize(1 - inputs['unsup_rgb'])
        expected = inputs['unsup_weak'] if view == 'weak' else inverted
        torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(strong, inverted)


def test_an_epoch_is_a_pass_over_the_labeled_images():
    model = build(shift_length='epoch')
    model.step = 7
    assert model.on_duty == 0  # the length is not known yet
    model.start_run(100, [3, 8])
    assert model.shift_number == 2 and model.on_duty == 0
    model.step = 9
    assert model.on_duty == 1
    other = build(shift_length=5)
    other.start_run(100, [3, 8])
    other.step = 9
    assert other.shift_number == 1


@pytest.mark.parametrize('passes', [(), (0, 8)])
def test_an_epoch_of_unknown_length_is_refused(passes):
    with pytest.raises(ValueError, match=r'shift_length.*epoch.*MultiSourceSampler'):
        build(shift_length='epoch').start_run(100, passes)
    build(shift_length=5).start_run(100, passes)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(num_teachers=0), 'num_teachers'),
        (dict(num_teachers='2'), 'num_teachers'),
        (dict(shift_length=0), 'shift_length'),
        (dict(shift_length=2.5), 'shift_length'),
        (dict(shift_length='iter'), "shift_length.*'epoch'"),
        (dict(threshold=1.5), 'threshold'),
        (dict(consistency_weight=-1), 'consistency_weight'),
        (dict(shifts=[dict(view='soft')]), 'view'),
        (dict(shifts=[dict(flip_prob=2)]), 'flip_prob'),
        (dict(sub_model=dict(drop_rate=1.0)), 'drop_rate'),
        (dict(sub_model=dict(rule='square')), 'rule'),
        (dict(sub_model=dict(block_types=['Nothing'])), 'Nothing'),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        build(**setting)


def test_a_misspelled_setting_is_refused_with_those_that_exist():
    with pytest.raises(TypeError, match=r"\['tresh'\].*'shift_length'.*'sup_weight'.*'threshold'"):
        build(tresh=0.9)


# ------------------------------------------------------------------------------ teachers on duty


@pytest.mark.parametrize('teachers', [1, 2, 3])
def test_only_the_teacher_on_duty_follows_and_keeps_its_own_count(teachers):
    model = build(num_teachers=teachers, restart=False, ema=dict(momentum=0.9))
    followed = [0] * teachers
    for step in range(14):
        before = [weights(model.network(name)) for name in model.teacher_names]
        assert [model.teacher_step(name) for name in model.teacher_names] == followed
        nudge(model)
        model.after_step()
        now = (step // 2) % teachers
        for index, name in enumerate(model.teacher_names):
            moved = weights(model.network(name))
            if index == now:
                a = min(1 - 1 / (followed[index] + 1), 0.9)
                expected = a * before[index] + (1 - a) * weights(model.student)
                torch.testing.assert_close(moved, expected)
            else:
                assert torch.equal(moved, before[index])
        followed[now] += 1
    assert model.iterations.item() == model.step == 14


def test_a_restarted_teacher_begins_each_shift_as_the_student():
    model = build(shift_length=3, ema=dict(momentum=0.9))
    for step in range(9):
        name = model.teachers_to_update()[0]
        nudge(model)
        model.after_step()
        same = torch.equal(weights(model.network(name)), weights(model.student))
        assert same == (step % 3 == 0)
    model.step = 7
    assert model.teacher_step('teacher_0') == 1


def ages_of_labeling_weights(shift_length, restart, momentum=0.99):
    """Mean age in steps of the weights that label, in the third and fourth shift.

    The student's only weight is its number of steps, so what a teacher has of it is the mean number
    of the students it averages. A student's own weights are a step old when a batch comes.
    """
    model = build(shift_length=shift_length, restart=restart, ema=dict(momentum=momentum))
    for name in model.network_names:  # nothing else has to move
        network = model.network(name)
        network.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        for part in [*network._modules]:
            delattr(network, part)
    ages = []
    for step in range(4 * shift_length):
        labeling = model.network(model.teachers_to_update()[0])
        ages.append(step + 1 - labeling.weight.item())
        model.student.weight.data.fill_(step + 1)
        model.after_step()
    return np.mean(ages[2 * shift_length :])


@pytest.mark.parametrize(
    ('shift_length', 'age'), [(23, 8), (46, 13), (92, 25), (158, 40), (331, 65)]
)
def test_weights_that_label_are_as_old_as_published(shift_length, age):
    """In shifts of 92 to 5052 labels, 4 or 8 in a step; those of one EMA teacher are 100 old."""
    assert ages_of_labeling_weights(shift_length, restart=True) == pytest.approx(age, abs=0.5)


def test_teachers_that_go_on_are_older_than_one_ema_teacher():
    old = ages_of_labeling_weights(331, restart=False)
    assert old > 1.4 * 100 and old > 2 * ages_of_labeling_weights(331, restart=True)


def test_duty_travels_with_the_checkpoint(batch):
    model = build(restart=False)
    for _ in range(3):
        nudge(model)
        model.after_step()
    other = build(restart=False)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert other.step == 3 and other.on_duty == 1
    assert [other.teacher_step(name) for name in other.teacher_names] == [2, 1]
    torch.manual_seed(5)
    expected = model.train().loss(*batch)
    torch.manual_seed(5)
    for key, value in other.train().loss(*batch).items():
        assert torch.equal(value, expected[key]), key


def test_a_plain_checkpoint_goes_into_every_network_and_begins_the_first_shift():
    model = build()
    for _ in range(3):
        model.after_step()
    plain = {key: value.clone() for key, value in build().student.state_dict().items()}
    model.load_state_dict(plain)
    for name in model.network_names:
        for key, value in model.network(name).state_dict().items():
            assert torch.equal(value, plain[key])
    assert model.step == model.on_duty == 0


def test_any_network_predicts_and_the_student_does_by_default(batch):
    model = build(shift_length=1).eval()
    for _ in model.teacher_names:
        nudge(model)
        model.after_step()
    nudge(model)
    images = batch[0]['sup']
    results = {}
    for name in ('student', 'teacher_0', 'teacher_1'):
        with model.predicting_on(name):
            results[name] = model(images, mode='tensor')
        torch.testing.assert_close(results[name], model.network(name)(images, mode='tensor'))
    assert torch.equal(model(images, mode='tensor'), results['student'])
    assert not torch.equal(results['teacher_0'], results['teacher_1'])


# --------------------------------------------------------------------------------- the sub-model


def test_the_second_pass_is_a_sub_model_of_the_student(batch):
    model = build(sub_model=dict(drop_rate=0.999, rule='constant')).train()
    ran = []
    for index, block in enumerate(model.sub_model.blocks):
        block.conv1.register_forward_hook(lambda *_, index=index: ran.append(index))
    blocks = list(range(len(model.sub_model.blocks)))
    assert len(blocks) > 1
    model.loss(*batch)
    # Once in the first pass, which is the full student; the second pass skips them all.
    assert ran == blocks
    assert not any('forward' in vars(block) for block in model.sub_model.blocks)


def test_all_processes_skip_the_same_blocks(batch):
    """Else the reductions of synchronized batch norm would not match."""
    model = build(sub_model=dict(drop_rate=0.5, rule='constant')).train()
    ran = []
    for index, block in enumerate(model.sub_model.blocks):
        block.conv1.register_forward_hook(lambda *_, index=index: ran.append(index))
    counts = set()
    for model.step in range(8):
        for rank in range(2):
            torch.manual_seed(rank)  # as IterSeedHook does on each rank
            model.loss(*batch)
        assert ran[: len(ran) // 2] == ran[len(ran) // 2 :]
        counts.add(tuple(ran))
        ran.clear()
    assert len(counts) > 2


def test_the_sub_model_leaves_no_trace_in_the_running_statistics(batch):
    model, other = build().train(), build(consistency_weight=0).train()
    for one in (model, other):
        torch.manual_seed(3)
        one.loss(*batch)
    for (key, value), expected in zip(model.student.named_buffers(), other.student.buffers()):
        assert torch.equal(value, expected), key


def test_drop_path_of_transformers_is_their_sub_model():
    cfg = tiny_segformer(NUM_CLASSES)
    cfg['backbone']['drop_path_rate'] = 0.5
    model = build(cfg).train()
    assert model.sub_model.uses_drop_path and not model.sub_model.blocks
    rates = {
        name: {m.drop_prob for m in model.network(name).modules() if type(m).__name__ == 'DropPath'}
        for name in model.network_names
    }
    assert max(rates['student']) == 0.5
    assert rates['teacher_0'] == rates['teacher_1'] == {0.0}


def test_a_network_without_blocks_to_skip_is_told_of():
    cfg = tiny_segmentor(dropout=0)
    cfg['backbone'] = dict(
        type='UNet',
        base_channels=8,
        num_stages=3,
        strides=(1, 1, 1),
        enc_num_convs=(1, 1, 1),
        dec_num_convs=(1, 1),
        downsamples=(True, True),
        enc_dilations=(1, 1, 1),
        dec_dilations=(1, 1),
    )
    with pytest.warns(UserWarning, match=r'no residual block.*sub_model.block_types'):
        build(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build(cfg, sub_model=None)
