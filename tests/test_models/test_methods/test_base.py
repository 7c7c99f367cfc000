import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from tiny_models import semi_batch, tiny_segmentor

from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import MeanTeacher
from mmdmt.models.methods.base import build_segmentor


def build(**train_cfg):
    test_cfg = train_cfg.pop('semi_test_cfg', None)
    torch.manual_seed(0)
    return MeanTeacher(tiny_segmentor(), semi_train_cfg=train_cfg, semi_test_cfg=test_cfg)


def test_teacher_stays_in_eval_mode_when_the_loop_calls_train():
    model = build()
    model.train()
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())
    model.eval()
    assert not model.student.training


def test_teacher_mode_train_is_a_choice():
    model = build(teacher_mode='train')
    assert all(module.training for module in model.train().teacher.modules())
    assert not any(module.training for module in model.eval().teacher.modules())


def test_teacher_gets_no_gradient_and_no_optimizer_state():
    model = build(threshold=0.0)
    inputs, samples = semi_batch()
    losses = model.train()(inputs, samples, mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())


def test_init_weights_makes_the_teacher_a_copy():
    model = build()
    model.init_weights()
    for key, value in model.student.state_dict().items():
        assert torch.equal(value, model.teacher.state_dict()[key])


def test_update_counts_steps_and_checkpoint_restores_them():
    model = build(ema=dict(momentum=0.9))
    for _ in range(3):
        model.update_teachers()
    assert model.ema_steps.tolist() == [3]
    other = build(ema=dict(momentum=0.9))
    other.load_state_dict(model.state_dict())
    assert other._ema_steps == [3]
    with torch.no_grad():  # both continue with the same momentum
        for network in (model, other):
            for parameter in network.student.parameters():
                parameter.fill_(1.0)
            network.update_teachers()
    for a, b in zip(model.teacher.parameters(), other.teacher.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
def test_plain_checkpoint_loads_into_every_network(loader):
    plain = build_segmentor(tiny_segmentor())
    state = plain.state_dict()
    keys = set(state)
    model = build()
    if loader == 'torch':
        assert not any(model.load_state_dict(state))
    else:
        load_state_dict(model, state, strict=True)
    assert set(state) == keys, "the caller's dict was changed"
    for name in ('student', 'teacher'):
        for key, value in model.network(name).state_dict().items():
            assert torch.equal(value, plain.state_dict()[key])


def test_networks_predict_by_name():
    model = build(semi_test_cfg=dict(predict_on='student')).eval()
    image = torch.randn(1, 3, 32, 32)
    student, teacher = model.student(image), model.teacher(image)
    assert torch.equal(model(image), student) and not torch.equal(student, teacher)
    with model.predicting_on('teacher'):
        assert torch.equal(model(image), teacher)
    assert torch.equal(model(image), student)
    assert len(model.predict(image)) == 1


def test_several_networks_predict_their_average_probability():
    both = ['student', 'teacher']
    model = build(semi_test_cfg=dict(predict_on=both)).eval()
    images = torch.randn(2, 3, 32, 32)
    probs = [dense_logits(getattr(model, name), images).softmax(1) for name in both]
    mean = (probs[0] + probs[1]) / 2
    torch.testing.assert_close(dense_logits(model, images).softmax(1), mean)
    torch.testing.assert_close(model(images).softmax(1), mean)
    for sample, expected in zip(model.predict(images), mean):
        torch.testing.assert_close(sample.seg_logits.data.softmax(0), expected)
        assert torch.equal(sample.pred_sem_seg.data[0], expected.argmax(0))


def test_the_average_of_networks_slides_as_each_of_them_does():
    cfg = tiny_segmentor()
    cfg['test_cfg'] = dict(mode='slide', crop_size=(24, 24), stride=(16, 16))
    torch.manual_seed(0)
    model = MeanTeacher(cfg, semi_test_cfg=dict(predict_on=['student', 'teacher'])).eval()
    images = torch.randn(1, 3, 32, 48)
    probs = [
        part.predict(images)[0].seg_logits.data.softmax(0)
        for part in (model.student, model.teacher)
    ]
    found = model.predict(images)[0].seg_logits.data.softmax(0)
    torch.testing.assert_close(found, (probs[0] + probs[1]) / 2)


def test_averages_of_students_or_teachers_go_by_name():
    model = build().eval()
    image = torch.randn(1, 3, 32, 32)
    for name, network in (('average', 'student'), ('teacher_average', 'teacher')):
        with model.predicting_on(name):
            assert torch.equal(model(image), getattr(model, network)(image))


def test_certain_predictions_have_finite_averages():
    model = build(semi_test_cfg=dict(predict_on=['student', 'teacher'])).eval()
    for name in model.network_names:
        torch.nn.init.normal_(model.network(name).decode_head.conv_seg.weight, std=1e4)
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32))).all()


def test_prediction_is_on_the_teacher_by_default():
    assert build().predict_on == 'teacher'


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(semi_test_cfg=dict(predict_on='techer')), r"'techer'.*\['student', 'teacher'\]"),
        (dict(semi_test_cfg=dict(predict_on=['student', 'x'])), r"\['student', 'x'\], but"),
        (dict(semi_test_cfg=dict(predict_on=[])), r'predict_on` is \[\]'),
        (dict(teacher_mode='evaluate'), 'teacher_mode'),
        (dict(threshold=1.2), 'threshold'),
        (dict(ema=dict(momentum=2)), 'momentum'),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_one_output_channel_is_refused():
    cfg = tiny_segmentor(num_classes=2)
    cfg['decode_head'].update(out_channels=1)
    cfg['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    with pytest.raises(ValueError, match='out_channels'):
        MeanTeacher(cfg)


def test_the_config_is_not_edited():
    cfg = tiny_segmentor()
    before = repr(cfg)
    MeanTeacher(cfg)
    assert repr(cfg) == before


def test_training_without_the_hook_warns_once(recwarn):
    model = build().train()
    inputs, samples = semi_batch()
    for _ in range(2):
        model(inputs, samples, mode='loss')
    assert sum('TeacherUpdateHook' in str(w.message) for w in recwarn) == 1
