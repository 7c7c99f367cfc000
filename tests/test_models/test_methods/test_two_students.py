"""What a method without teachers needs of the base: two students that label for each other."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits, hard_labels, pseudo_label
from mmdmt.models.losses.consistency import consistency_loss
from mmdmt.models.methods import SemiSegmentor
from mmdmt.models.modes import in_mode
from mmdmt.registry import MODELS

PEERS = {'l': 'r', 'r': 'l'}
KEY = 'decode_head.conv_seg.weight'


class TwoStudents(SemiSegmentor):
    """Cross Pseudo Supervision: each learns the other's hard labels, on all images or some."""

    def __init__(self, segmentor, *, on_labeled=True, **common):
        super().__init__({f'student_{side}': segmentor for side in PEERS}, **common)
        self.on_labeled = on_labeled

    def semi_loss(self, inputs, data_samples):
        images, valid = inputs['unsup_weak'], inputs['unsup_valid']
        if self.on_labeled:
            valid = torch.cat([valid.new_ones(len(inputs['sup']), *valid.shape[1:]), valid])
        losses, logits = {}, {}
        for side in PEERS:
            found, logits[side] = self.forward_student(
                f'student_{side}', inputs, data_samples, images, with_sup=self.on_labeled
            )
            losses.update(found)
        for side, peer in PEERS.items():
            targets = hard_labels(logits[peer], valid)
            loss, stats = consistency_loss(logits[side], targets, 0.0, prefix=f'unsup_{side}')
            losses.update({f'unsup_{side}_loss': loss * self.unsup_scale()}, **stats)
        return losses


@pytest.fixture(autouse=True, scope='module')
def registered():
    MODELS.register_module(module=TwoStudents)
    yield
    MODELS.module_dict.pop('TwoStudents')


def build(**settings):
    torch.manual_seed(0)
    cfg = dict(type='mmdmt.TwoStudents', segmentor=tiny_segmentor(dropout=0), **settings)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg)
    model.start_run(max_iters=10)
    return model


@pytest.mark.parametrize('on_labeled', [True, False])
def test_each_student_learns_the_labels_of_the_other(on_labeled):
    model = build(on_labeled=on_labeled, unsup_weight=1.5).eval()
    inputs, samples = semi_batch()
    images = inputs['unsup_weak']
    images = torch.cat([inputs['sup'], images]) if on_labeled else images
    losses = model.loss(inputs, samples)
    logits = {side: dense_logits(model.network(f'student_{side}'), images) for side in PEERS}
    assert not torch.equal(*[each.argmax(1) for each in logits.values()])
    for side, peer in PEERS.items():
        expected = 1.5 * F.cross_entropy(logits[side], logits[peer].argmax(1))
        torch.testing.assert_close(losses[f'unsup_{side}_loss'], expected)


@pytest.mark.parametrize('on_labeled', [True, False])
def test_a_step_runs_each_image_through_each_student_once(on_labeled):
    model = build(on_labeled=on_labeled).train()
    inputs, samples = semi_batch()
    seen = []
    for side in PEERS:
        stem = model.network(f'student_{side}').backbone
        stem.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    model.loss(inputs, samples)
    assert seen == [len(inputs['sup']) + len(inputs['unsup_weak'])] * 2


def test_a_step_reaches_each_student_through_its_own_loss_alone():
    model = build().train()
    losses = model(*semi_batch(), mode='loss')
    for side, peer in PEERS.items():
        own = [
            v
            for k, v in losses.items()
            if 'loss' in k and k.split('.')[0].endswith((f'sup_{side}', f'sup_{side}_loss'))
        ]
        assert len(own) == 2
        model.zero_grad()
        sum(own).backward(retain_graph=True)
        assert all(p.grad is not None for p in model.network(f'student_{side}').parameters())
        assert all(p.grad is None for p in model.network(f'student_{peer}').parameters())


def test_an_optimizer_step_moves_both_students():
    model = build().train()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total, _ = model.parse_losses(model(*semi_batch(), mode='loss'))
    total.backward()
    optimizer.step()
    model.after_step()
    for name in ('student_l', 'student_r'):
        new, old = (part.network(name).state_dict()[KEY] for part in (model, before))
        assert not torch.equal(new, old)
    assert model.step == 1 and model.teacher_names == []


def test_labeling_in_train_mode_leaves_the_statistics_alone():
    model = build(sup_weight=0.0).train()
    inputs, samples = semi_batch()
    student = model.student_l
    before = copy.deepcopy(student.state_dict())
    with in_mode(student, training=True):
        labeled = pseudo_label(student, inputs['unsup_weak'], inputs['unsup_valid'])
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    with in_mode(student, training=False):
        other = pseudo_label(student, inputs['unsup_weak'], inputs['unsup_valid'])
    assert not torch.equal(labeled.confidence, other.confidence), 'batch statistics were not used'
    # In a step they move once, by the pass that trains.
    model.loss(inputs, samples)
    assert student.backbone.bn1.num_batches_tracked == 1


def test_a_batch_of_labeled_images_trains_both():
    model = build().train()
    inputs, samples = semi_batch()
    losses = model.loss(dict(sup=inputs['sup']), samples)
    assert {key.split('.')[0] for key in losses} == {'sup_l', 'sup_r'}


def test_either_student_predicts_or_both_together():
    model = build().eval()
    image = torch.randn(1, 3, 32, 32)
    assert model.predict_on == 'student_l'
    probs = []
    for name in ('student_l', 'student_r'):
        with model.predicting_on(name):
            assert torch.equal(model(image), model.network(name)(image))
            probs.append(dense_logits(model, image).softmax(1))
    with model.predicting_on('average'):
        torch.testing.assert_close(dense_logits(model, image).softmax(1), sum(probs) / 2)
    with pytest.raises(ValueError, match=r"'teacher_average', but TwoStudents has the networks"):
        build(predict_on='teacher_average')


def test_the_ramp_goes_on_after_resuming():
    model = build(rampup_iters=4)
    for _ in range(3):
        model.after_step()
    other = build(rampup_iters=4)
    other.load_state_dict(model.state_dict())
    assert other.step == 3 and other.unsup_scale() == 0.75
    inputs, samples = semi_batch()
    expected = model.eval().loss(inputs, samples)
    for key, value in other.eval().loss(inputs, samples).items():
        assert torch.equal(value, expected[key]), key


def test_a_plain_checkpoint_starts_both_students():
    model = build()
    model.after_step()
    plain = {k: torch.randn(v.shape).to(v) for k, v in model.student_l.state_dict().items()}
    model.load_state_dict(dict(plain))
    for name in model.network_names:
        assert torch.equal(model.network(name).state_dict()[KEY], plain[KEY])
    assert model.step == 0


def test_one_plain_checkpoint_for_both_students_is_warned_of():
    plain = build().student_l.state_dict()
    with pytest.warns(UserWarning, match=r"\['student_l', 'student_r'\] start from the same"):
        build().load_state_dict(plain)
