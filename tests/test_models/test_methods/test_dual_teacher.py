import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import DualTeacher
from mmdmt.models.methods import dual_teacher as module
from mmdmt.models.methods.dual_teacher import (
    PUBLISHED_SHIFTS,
    RELEASED_SWITCHES,
    Shift,
    Targets,
)
from mmdmt.models.views import mix

GOLDEN = Path(__file__).resolve().parents[2] / 'data' / 'golden' / 'dual_teacher_0.npz'
PLAIN = [dict(per_image=True), dict(per_image=False)]
PREPROCESSOR = dict(
    type='mmdmt.SemiDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(32, 32),
)


def build(segmentor=None, **train_cfg):
    """A model whose networks differ, as they do in the middle of training."""
    torch.manual_seed(0)
    model = DualTeacher(
        segmentor or tiny_segmentor(dropout=0),
        semi_train_cfg=train_cfg,
        data_preprocessor=PREPROCESSOR,
    )
    model.teacher_hook_attached = model.switch_hook_attached = True
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return semi_batch(num_labeled=3)


def said(model, inputs, name='teacher_0'):
    """What a teacher says, worked out in other words."""
    confidence, label = dense_logits(model.network(name), inputs['unsup_weak']).softmax(1).max(1)
    return label, confidence


# ---------------------------------------------------------------------------------------- losses


def test_mixed_loss_of_both_kinds_of_shift(batch):
    model = build(shifts=PLAIN, unsup_weight=2.0, consistency_weight=0).eval()
    inputs, samples = batch
    for index, per_image in enumerate([True, False]):
        label, confidence = said(model, inputs, f'teacher_{index}')
        model.threshold = confidence.median().item()
        sure = (confidence >= model.threshold).float().flatten(1).mean(1)
        weight = sure.view(-1, 1, 1) if per_image else sure.mean()
        logits = dense_logits(model.student, inputs['unsup_strong'])
        expected = (weight * F.cross_entropy(logits, label, reduction='none')).mean()
        losses = model.loss(inputs, samples)
        assert sure.min() > 0 and sure.max() < 1
        torch.testing.assert_close(losses['unsup_mixed_loss'], 2 * expected)
        torch.testing.assert_close(losses['unsup_confident_share'], sure.mean())
        assert losses['on_duty'].item() == index
        model.switch_teacher()


def test_implicit_consistency_counts_sure_pixels_over_valid_ones(batch):
    model = build(shifts=PLAIN).eval()
    inputs, samples = batch
    inputs['unsup_valid'][:, :, 20:] = False
    label, confidence = said(model, inputs)
    model.threshold = confidence.median().item()
    valid = inputs['unsup_valid']
    kept = (confidence >= model.threshold) & valid
    model.sub_model.drop_probs[:] = 0
    logits = dense_logits(model.student, inputs['unsup_strong'])
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


@pytest.fixture
def golden():
    with np.load(GOLDEN) as file:
        return {
            key: torch.from_numpy(value) if value.ndim else value.item()
            for key, value in file.items()
        }


def test_losses_of_the_step_have_the_golden_values(golden):
    """The method hands logits, labels, confidence and weights to the losses as published."""
    model = build(shifts=PLAIN, threshold=golden['threshold'], consistency_weight=1.0)
    label, confidence = golden['cutmix_label'].long(), golden['cutmix_confidence']
    targets = Targets(label, confidence, torch.ones_like(label, dtype=torch.bool))
    found = model._mixed_loss(golden['cutmix_student_logits'], targets, targets, model.shifts[0])
    assert found['unsup_mixed_loss'].item() == pytest.approx(golden['cutmix_loss'], rel=1e-5)

    confidence, label = golden['teacher_logits'].softmax(1).max(1)
    before = Targets(label, confidence, torch.ones_like(label, dtype=torch.bool))
    mixed = Targets(*mix(golden['classmix_mask'].bool(), golden['classmix_perm'], *before))
    logits = golden['classmix_student_logits']
    found = model._mixed_loss(logits, mixed, before, model.shifts[1])
    assert found['unsup_mixed_loss'].item() == pytest.approx(golden['classmix_loss'], rel=1e-5)
    weight = found['unsup_confident_share'].item()
    assert weight == pytest.approx(golden['classmix_weight'], rel=1e-5)

    model._sub_model_logits = lambda images: golden['student_logits']
    confidence, label = golden['teacher_logits'].softmax(1).max(1)
    targets = Targets(label, confidence, golden['valid'].bool())
    found = model._implicit_consistency(None, targets, {})
    assert found['unsup_consistency_loss'].item() == pytest.approx(golden['ic_loss'], rel=1e-5)


def test_padded_pixels_never_count(batch):
    """Whatever lies under the padding changes neither the losses nor the statistics."""
    model = build(shifts=PLAIN, threshold=0.3).eval()
    model.sub_model = None
    inputs, samples = batch
    inputs['unsup_valid'][1] = False
    changed = {key: value.clone() for key, value in inputs.items()}
    changed['unsup_strong'][1] = 9.0
    changed['unsup_weak'][1] = -9.0
    for _ in range(2):
        for key, value in model.loss(inputs, samples).items():
            torch.testing.assert_close(model.loss(changed, samples)[key], value, msg=key)
        model.switch_teacher()


def test_nothing_sure_gives_zero_loss_with_a_gradient(batch):
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
    model = build(shifts=PLAIN, threshold=0.0, rampup_iters=4).eval()
    model.sub_model = None
    model.ema.momentum = 1.0
    model.ema.warmup = False
    full = build(shifts=PLAIN, threshold=0.0).eval()
    full.sub_model = None
    for share in [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]:
        found, expected = model.loss(*batch), full.loss(*batch)
        for key in ('unsup_mixed_loss', 'unsup_consistency_loss'):
            torch.testing.assert_close(found[key], share * expected[key])
        model.update_teachers()
        for one in (model, full):
            one.switch_teacher()


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


@pytest.mark.parametrize('shifts', [None, PLAIN])
def test_a_step_is_three_passes(batch, shifts):
    model = build(shifts=shifts).train()
    passes = count_passes(model)
    model.loss(*batch)
    # Three labeled and three mixed images together, the strong view, the teacher's weak view.
    assert sorted(passes) == [('student', 3), ('student', 6), ('teacher_0', 3)]
    passes.clear()
    model.switch_teacher()
    model.loss(*batch)
    assert sorted(passes) == [('student', 3), ('student', 6), ('teacher_1', 3)]


def test_implicit_consistency_without_weight_costs_no_pass(batch):
    model = build(consistency_weight=0).train()
    passes = count_passes(model)
    losses = model.loss(*batch)
    assert sorted(passes) == [('student', 6), ('teacher_0', 3)]
    assert 'unsup_consistency_loss' not in losses and 'unsup_confidence' in losses


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
    for _ in range(2):
        model.loss(*batch)
        model.switch_teacher()


def test_mixed_precision_gives_nearly_the_same_losses(batch):
    model = build(threshold=0.3).train()
    for _ in range(2):
        torch.manual_seed(2)
        expected = model.loss(*batch)
        torch.manual_seed(2)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = model.loss(*batch)
        for key in ('sup_decode.loss_ce', 'unsup_mixed_loss', 'unsup_consistency_loss'):
            assert found[key].dtype == torch.float32
            torch.testing.assert_close(found[key], expected[key], rtol=0.1, atol=0.02)
        model.switch_teacher()


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


class ImageOfLabels(torch.nn.Module):
    """A preprocessor that changes nothing."""

    def denormalize(self, images):
        return images

    normalize = denormalize


@pytest.mark.parametrize('config', PUBLISHED_SHIFTS)
def test_labels_confidence_and_validity_stay_on_their_pixels(config):
    """An image that shows the label tells where each pixel came from."""
    torch.manual_seed(0)
    label = torch.randint(0, 4, (8, 16, 16))
    targets = Targets(label, label / 10, label > 0)
    shift = Shift(**dict(config, strong=None))
    mixed, found = shift(label[:, None].float(), targets, ImageOfLabels(), padded=True)
    assert not torch.equal(found.label, label)
    assert torch.equal(mixed[:, 0].long(), found.label)
    assert torch.equal(found.confidence, found.label / 10)
    assert torch.equal(found.valid, found.label > 0)


def test_mixed_images_are_augmented_in_color_space(monkeypatch):
    """The augmentation of a shift sees RGB in [0, 1], not normalized numbers, and no padding."""
    model = build(shifts=[dict(strong=dict(type='mmdmt.StrongAugment'))])
    seen = {}

    def invert(images, valid):
        seen.update(images=images)
        return 1 - images

    monkeypatch.setattr(model.shifts[0].strong, 'forward', invert)
    rgb = torch.rand(2, 3, 32, 32)
    images = model.data_preprocessor.normalize(rgb)
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[:, :, 30:] = False
    targets = Targets(valid.long(), valid.float(), valid)
    mixed, _ = model.shifts[0](images, targets, model.data_preprocessor, padded=True)
    torch.testing.assert_close(seen['images'], rgb, atol=1e-5, rtol=0)
    expected = torch.where(valid[:, None], model.data_preprocessor.normalize(1 - rgb), images)
    torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=0)


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
    model = build(num_teachers=teachers).train()
    used = []
    for index, shift in enumerate(model.shifts):
        shift.mix.register_forward_hook(lambda *_, index=index: used.append(index))
    for teacher, shift in expected:
        assert model.teacher_on_duty == f'teacher_{teacher}'
        model.loss(*batch)
        assert used[-1] == shift
        model.switch_teacher()
    assert [type(shift.mix).__name__ for shift in model.shifts] == ['CutMix', 'ClassMix']


def test_the_view_that_is_mixed_is_configurable(batch):
    inputs, samples = batch
    inputs['unsup_strong'] = inputs['unsup_weak'] + 100
    for view, offset in (('weak', 0), ('strong', 100)):
        model = build(shifts=[dict(view=view)]).train()
        seen = []
        model.student.backbone.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        model.loss(inputs, samples)
        torch.testing.assert_close(seen[0][3:], inputs['unsup_weak'] + offset)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(num_teachers=0), 'num_teachers'),
        (dict(num_teachers='2'), 'num_teachers'),
        (dict(threshold=1.5), 'threshold'),
        (dict(tresh=0.9), "unknown keys \\['tresh'\\]"),
        (dict(shifts=[dict(view='soft')]), 'view'),
        (dict(shifts=[dict(flip_prob=2)]), 'flip_prob'),
        (dict(sub_model=dict(drop_rate=1.0)), 'drop_rate'),
        (dict(sub_model=dict(rule='square')), 'rule'),
        (dict(sub_model=dict(block_types=['Nothing'])), 'Nothing'),
        (dict(released_behavior=dict(restart=True)), "unknown keys \\['restart'\\]"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        build(**setting)


# ------------------------------------------------------------------------------ teachers on duty


def nudge(model):
    """An optimizer step: all that matters is that the student moves."""
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_only_the_teacher_on_duty_follows_and_keeps_its_own_count():
    model = build(num_teachers=3, ema=dict(momentum=0.9))
    followed = [[], [], []]
    for step in range(14):
        if step and step % 2 == 0:
            model.switch_teacher()
        before = [weights(model.network(name)) for name in model.teacher_names]
        nudge(model)
        model.update_teachers()
        now = (step // 2) % 3
        assert model.teacher_on_duty == f'teacher_{now}'
        for index, name in enumerate(model.teacher_names):
            moved = weights(model.network(name))
            if index == now:
                count = len(followed[index])
                a = min(1 - 1 / (count + 1), 0.9)
                expected = a * before[index] + (1 - a) * weights(model.student)
                torch.testing.assert_close(moved, expected)
                followed[index].append(step)
            else:
                assert torch.equal(moved, before[index])
    assert [len(steps) for steps in followed] == model.ema_steps.tolist() == [6, 4, 4]
    assert model._ema_steps == [6, 4, 4] and model.student_steps.item() == 14


def test_state_of_the_shifts_travels_with_the_checkpoint(batch):
    model = build()
    for _ in range(3):
        nudge(model)
        model.update_teachers()
    model.switch_teacher()
    other = build()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert other.teacher_on_duty == 'teacher_1' and other._ema_steps == [3, 0]
    assert other._student_steps == 3 and other._shift_number == 1
    torch.manual_seed(5)
    expected = model.train().loss(*batch)
    torch.manual_seed(5)
    for key, value in other.train().loss(*batch).items():
        assert torch.equal(value, expected[key]), key


def test_a_plain_checkpoint_goes_into_every_network_and_begins_the_first_shift():
    model = build()
    model.switch_teacher()
    model.update_teachers()
    plain = {key: value.clone() for key, value in build().student.state_dict().items()}
    model.load_state_dict(plain)
    for name in model.network_names:
        for key, value in model.network(name).state_dict().items():
            assert torch.equal(value, plain[key])
    assert model.teacher_on_duty == 'teacher_0'
    assert model._student_steps == model.student_steps.item() == 0
    assert model.ema_steps.tolist() == [0, 0]


def test_a_forgotten_hook_is_told_of_once(batch):
    model = build().train()
    model.switch_hook_attached = False
    with pytest.warns(UserWarning, match='SwitchTeacherHook'):
        model(*batch, mode='loss')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(*batch, mode='loss')
        single = build(num_teachers=1).train()
        single.switch_hook_attached = False
        single(*batch, mode='loss')


def test_teachers_stay_in_their_mode():
    model = build().train()
    assert model.student.training
    assert not model.teacher_0.training and not model.teacher_1.training
    model = build(teacher_mode='train').train()
    assert model.teacher_0.training and model.teacher_1.training
    assert not model.eval().teacher_0.training


def test_any_network_predicts_and_the_student_does_by_default(batch):
    model = build().eval()
    for _ in model.teacher_names:
        nudge(model)
        model.update_teachers()
        model.switch_teacher()
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
    blocks = list(range(len(ran), len(model.sub_model.blocks)))
    assert len(blocks) > 1
    model.loss(*batch)
    # Once in the first pass, which is the full student; the second pass skips them all.
    assert ran == blocks
    assert not any('forward' in vars(block) for block in model.sub_model.blocks)


def test_the_sub_model_leaves_no_trace_in_the_running_statistics(batch):
    model, other = build().train(), build(consistency_weight=0).train()
    for one in (model, other):
        torch.manual_seed(3)
        one.loss(*batch)
    for (key, value), expected in zip(model.student.named_buffers(), other.student.buffers()):
        assert torch.equal(value, expected), key


def test_drop_path_of_transformers_is_their_sub_model():
    cfg = tiny_segmentor(dropout=0)
    cfg['backbone'] = dict(
        type='MixVisionTransformer',
        embed_dims=8,
        num_stages=2,
        num_layers=[1, 2],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[4, 2],
        out_indices=(0, 1),
        drop_path_rate=0.5,
    )
    model = build(cfg).train()
    assert model.sub_model.uses_drop_path and not model.sub_model.blocks
    rates = {
        name: {m.drop_prob for m in model.network(name).modules() if type(m).__name__ == 'DropPath'}
        for name in model.network_names
    }
    assert max(rates['student']) == 0.5
    assert rates['teacher_0'] == rates['teacher_1'] == {0.0}
    model.loss(*semi_batch())


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
    with pytest.warns(UserWarning, match='no residual block'):
        build(cfg)


# --------------------------------------------------------------- what the published code does


def test_released_behavior_is_all_switches():
    assert set(build(released_behavior=True).released.values()) == {True}
    assert set(build().released.values()) == {False}
    one = build(released_behavior=dict(restart_steps=True)).released
    assert [name for name, on in one.items() if on] == ['restart_steps']
    assert set(one) == set(RELEASED_SWITCHES)


def test_released_teachers_count_from_zero_in_every_shift():
    """So the first step of a shift overwrites the teacher by the student."""
    model = build(released_behavior=dict(restart_steps=True), ema=dict(momentum=0.9))
    for shift in range(3):
        for step in range(3):
            nudge(model)
            model.update_teachers()
            same = torch.equal(
                weights(model.network(model.teacher_on_duty)), weights(model.student)
            )
            assert same == (step == 0)
        assert model.ema_steps[shift % 2].item() == 3
        model.switch_teacher()
        assert model.ema_steps[model._on_duty].item() == 0


def test_released_jitter_sees_normalized_images(batch):
    inputs, _ = batch
    model = build(released_behavior=dict(jitter_normalized=True))
    strong = model._strong_view(inputs)
    assert strong.shape == inputs['unsup_weak'].shape
    assert inputs['unsup_weak'].min() < -1 and strong.min() == 0 and strong.max() <= 1
    assert build()._strong_view(inputs) is inputs['unsup_strong']


def test_released_jitter_is_one_draw_for_the_batch(batch):
    inputs, _ = batch
    inputs['unsup_weak'] = torch.rand(1, 3, 32, 32).expand(4, -1, -1, -1)
    strong = build(released_behavior=dict(jitter_normalized=True))._strong_view(inputs)
    torch.testing.assert_close(strong[1:], strong[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize('switch', ['unmixed_confidence', 'quantized_confidence'])
def test_released_confidence_of_the_cutmix_shift(batch, switch, monkeypatch):
    model = build(released_behavior={switch: True})
    seen = []

    def spy(logits, label, confidence, *args):
        seen.append(confidence)
        return logits.sum() * 0, dict(confident_share=logits.sum() * 0)

    monkeypatch.setattr(module, 'confidence_share_loss', spy)
    shape = (2, 8, 8)
    ones = torch.ones(shape, dtype=torch.bool)
    before = Targets(torch.zeros(shape, dtype=torch.long), torch.rand(shape), ones)
    mixed = before._replace(confidence=torch.rand(shape))
    expected = (
        before.confidence
        if switch == 'unmixed_confidence'
        else (mixed.confidence * 255).floor() / 255
    )
    for shift in model.shifts:
        model._mixed_loss(torch.zeros(2, 4, 8, 8), mixed, before, shift)
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], mixed.confidence)  # not in the ClassMix shift


def test_quantized_threshold_is_243_of_255():
    for value, sure in ((242, False), (243, True)):
        model = build(released_behavior=dict(quantized_confidence=True), threshold=0.95)
        shape = (1, 4, 4)
        confidence = torch.full(shape, (value + 0.5) / 255)
        targets = Targets(
            torch.zeros(shape).long(), confidence, torch.ones(shape, dtype=torch.bool)
        )
        share = model._mixed_loss(torch.randn(1, 4, 4, 4), targets, targets, model.shifts[0])
        assert share['unsup_confident_share'].item() == sure


def test_released_ignore_mask_is_that_of_the_labeled_images(batch):
    model = build(released_behavior=dict(labeled_ignore_mask=True), threshold=0.0).eval()
    inputs, samples = batch
    samples['sup'][0].gt_sem_seg.data[..., :16] = 255
    label, confidence = said(model, inputs)
    targets = Targets(label, confidence, inputs['unsup_valid'])
    ce = F.cross_entropy(
        dense_logits(model.student, inputs['unsup_strong']), label, reduction='none'
    )
    kept = torch.ones_like(label, dtype=torch.bool)
    kept[0, :, :16] = False
    model.sub_model = None
    found = model._implicit_consistency(inputs['unsup_strong'], targets, samples)
    torch.testing.assert_close(found['unsup_consistency_loss'], 0.2 * ce[kept].mean())


def test_released_ignore_mask_needs_pairs():
    model = build(released_behavior=dict(labeled_ignore_mask=True))
    with pytest.raises(ValueError, match='source_ratio'):
        model.loss(*semi_batch(num_labeled=1, num_unlabeled=2))


def test_released_teachers_label_in_train_mode_with_their_own_statistics(batch):
    model = build(released_behavior=dict(train_mode_teachers=True)).train()
    assert model.teacher_0.training and model.ema.buffers == 'keep'
    before = model.teacher_0.backbone.bn1.running_mean.clone()
    model.loss(*batch)
    labeled = model.teacher_0.backbone.bn1.running_mean.clone()
    assert not torch.equal(labeled, before)
    model.update_teachers()
    assert torch.equal(model.teacher_0.backbone.bn1.running_mean, labeled)


def test_released_second_pass_is_the_full_student_and_moves_its_statistics(batch):
    model = build(released_behavior=dict(plain_second_pass=True)).train()
    assert model.sub_model is None
    model.loss(*batch)
    assert model.student.backbone.bn1.num_batches_tracked.item() == 2
    model = build().train()
    model.loss(*batch)
    assert model.student.backbone.bn1.num_batches_tracked.item() == 1
