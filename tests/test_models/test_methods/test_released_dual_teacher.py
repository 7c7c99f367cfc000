import pytest
import torch
import torch.nn.functional as F
from tiny_dual_teacher import build as build_method
from tiny_dual_teacher import nudge, padded_batch, seen_by_the_student, weights
from tiny_models import semi_batch

from mmdmt.models.forward import Targets, dense_logits, pseudo_label
from mmdmt.models.methods import ReleasedDualTeacher
from mmdmt.models.methods.dual_teacher import PUBLISHED_SHIFTS
from mmdmt.models.methods.released_dual_teacher import ReleasedShift


def build(**settings):
    return build_method(method=ReleasedDualTeacher, **dict(dict(strong=None), **settings))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return semi_batch(num_labeled=3)


def test_released_settings_are_the_defaults_and_fixed_ones_are_refused():
    model = build(ema=dict(momentum=0.9))
    assert model.restart and not model.sub_model.drop_probs.any() and model.strong is None
    assert vars(model.ema) == dict(momentum=0.9, buffers='keep', warmup=True, mode='train')
    assert not build(restart=False).restart
    for fixed in (dict(strong=dict(type='mmdmt.StrongAugment')), dict(sub_model=dict())):
        with pytest.raises(ValueError, match=f'no choice of `{next(iter(fixed))}`, got'):
            build(**fixed)
    with pytest.raises(TypeError, match=r"\['tresh'\].*'shift_length'"):
        build(tresh=0.9)


def test_the_first_step_of_a_shift_overwrites_the_teacher_by_the_student():
    model = build(shift_length=3, ema=dict(momentum=0.9))
    for step in range(9):
        name = model.teachers_to_update()[0]
        nudge(model)
        model.after_step()
        same = torch.equal(weights(model.network(name)), weights(model.student))
        assert same == (step % 3 == 0)


def strong_view(model, inputs, samples):
    return seen_by_the_student(model.train(), inputs, samples)[1]


def test_the_jitter_sees_normalized_images(batch):
    inputs, samples = batch
    strong = strong_view(build(), inputs, samples)
    assert strong.shape == inputs['unsup_weak'].shape
    assert inputs['unsup_weak'].min() < -1
    assert strong.min() == pytest.approx(0, abs=1e-5) and strong.max() <= 1 + 1e-5


def test_the_jitter_is_one_draw_for_the_batch(batch):
    inputs, samples = batch
    inputs['unsup_weak'] = inputs['unsup_weak'][:1].repeat(3, 1, 1, 1)
    strong = strong_view(build(), inputs, samples)
    torch.testing.assert_close(strong[1:], strong[:1].expand(2, -1, -1, -1))


def test_the_weak_view_is_mixed_as_it_is():
    """Also its padding, which the network sees as the preprocessor made it."""
    inputs, samples = padded_batch()
    model = build(shifts=[dict(view='weak')]).train()
    mixed, _ = seen_by_the_student(model, inputs, samples)
    torch.testing.assert_close(mixed, inputs['unsup_weak'], atol=1e-4, rtol=0)


def test_confidence_of_the_cutmix_shift_is_neither_mixed_nor_finer_than_8_bits():
    torch.manual_seed(0)
    shape = (4, 16, 16)
    label = torch.randint(0, 4, shape)
    targets = Targets(label, torch.rand(shape), torch.ones(shape, dtype=torch.bool))
    images = label[:, None].expand(-1, 3, -1, -1) / 4
    mixed, found = ReleasedShift(**dict(PUBLISHED_SHIFTS[0], strong=None))(images, targets, False)
    assert torch.equal((mixed[:, 0] * 4).long(), found.label)
    assert not torch.equal(found.label, label)
    assert torch.equal(found.confidence, (targets.confidence * 255).floor() / 255)
    # In the ClassMix shift it goes along.
    targets = targets._replace(confidence=label / 10)
    _, found = ReleasedShift(**PUBLISHED_SHIFTS[1])(images, targets, False)
    assert torch.equal(found.confidence, found.label / 10)


@pytest.mark.parametrize(('value', 'confident'), [(242, False), (243, True)])
def test_a_threshold_of_95_percent_is_243_of_255(value, confident):
    shape = (1, 4, 4)
    confidence = torch.full(shape, (value + 0.5) / 255)
    targets = Targets(torch.zeros(shape).long(), confidence, torch.ones(shape, dtype=torch.bool))
    _, found = ReleasedShift(per_image=True)(torch.rand(1, 3, 4, 4), targets, False)
    stats = build().mixed_loss(torch.randn(1, 4, 4, 4), found, 0.95, per_image=True)
    assert stats['unsup_confident_share'].item() == confident


def test_implicit_consistency_leaves_out_what_the_labeled_images_ignore(batch):
    model = build().eval()
    inputs, samples = batch
    samples['sup'][0].gt_sem_seg.data[..., :16] = 255
    targets = pseudo_label(model.teacher_0, inputs['unsup_weak'], inputs['unsup_valid'])
    logits = dense_logits(model.student, inputs['unsup_weak'])
    ce = F.cross_entropy(logits, targets.label, reduction='none')
    kept = torch.ones_like(targets.label, dtype=torch.bool)
    kept[0, :, :16] = False
    found = model.consistency(inputs['unsup_weak'], targets, 0.0, samples)
    torch.testing.assert_close(found['unsup_consistency_loss'], 0.2 * ce[kept].mean())


def test_labeled_and_unlabeled_images_have_to_be_pairs():
    with pytest.raises(ValueError, match='source_ratio'):
        build().loss(*semi_batch(num_labeled=1, num_unlabeled=2))


def test_teachers_label_in_train_mode_with_statistics_of_their_own(batch):
    model = build().train()
    assert model.teacher_0.training and not model.eval().teacher_0.training
    model.train()
    before = model.teacher_0.backbone.bn1.running_mean.clone()
    model.loss(*batch)
    labeled = model.teacher_0.backbone.bn1.running_mean.clone()
    assert not torch.equal(labeled, before)
    model.after_step()
    assert torch.equal(model.teacher_0.backbone.bn1.running_mean, labeled)


def test_the_second_pass_moves_the_statistics_and_skips_nothing(batch):
    model = build().train()
    ran = []
    for block in model.sub_model.blocks:
        block.conv1.register_forward_hook(lambda *_: ran.append(1))
    model.loss(*batch)
    assert len(ran) == 2 * len(model.sub_model.blocks) > 0
    assert model.student.backbone.bn1.num_batches_tracked.item() == 2
