import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from mmseg.models import SegDataPreProcessor
from tiny_models import NORMALIZE, semi_batch, tiny_segmentor, unlabeled_samples

from mmdmt.models.data_preprocessor import SemiDataPreprocessor
from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import MeanTeacher
from mmdmt.models.methods.base import build_segmentor
from mmdmt.registry import MODELS


def build(**settings):
    torch.manual_seed(0)
    return MeanTeacher(tiny_segmentor(), **settings)


def test_teacher_stays_in_eval_mode_when_the_loop_calls_train():
    model = build()
    model.train()
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())
    model.eval()
    assert not model.student.training


def test_teacher_mode_train_is_a_choice():
    model = build(ema=dict(mode='train'))
    assert all(module.training for module in model.train().teacher.modules())
    assert not any(module.training for module in model.eval().teacher.modules())


def test_teacher_gets_no_gradient_and_no_optimizer_state():
    model = build(threshold=0.0)
    inputs, samples = semi_batch()
    losses = model.train()(inputs, samples, mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())


@pytest.mark.parametrize(
    ('batch_statistics', 'expected'),
    [('joint', [5]), ('separate', [3, 2]), ('domain', [3, 2])],
)
def test_labeled_and_unlabeled_images_pass_together_or_by_themselves(batch_statistics, expected):
    """Batch norms see both kinds of images together, or each alone, as in some released code."""
    model = build(batch_statistics=batch_statistics, threshold=0.0).train()
    passes = []
    model.student.backbone.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    inputs, samples = semi_batch(num_labeled=3, num_unlabeled=2)
    losses = model.loss(inputs, samples)
    assert passes == expected and losses['unsup_loss'] > 0


@pytest.mark.parametrize('batch_statistics', ['separate', 'domain'])
def test_running_statistics_are_those_of_the_domain(batch_statistics):
    """Of the first batch norm, against the features it normalizes."""
    model = build(batch_statistics=batch_statistics, threshold=0.0, ema=dict(momentum=0.5)).train()
    layer, seen = model.student.backbone.bn1, []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().mean((0, 2, 3))))
    inputs, samples = semi_batch(num_labeled=3, num_unlabeled=2)
    inputs['sup'] = inputs['sup'] + 5  # another domain
    losses = model(inputs, samples, mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    moved = [seen[1]] if batch_statistics == 'domain' else seen
    expected = torch.zeros_like(layer.running_mean)
    for mean in moved:
        expected = expected + layer.momentum * (mean - expected)
    torch.testing.assert_close(layer.running_mean, expected)
    assert layer.track_running_stats and layer.num_batches_tracked == len(moved)
    assert not torch.allclose(*seen)
    model.after_step()  # the teacher, which labels in eval mode, follows
    torch.testing.assert_close(model.teacher.backbone.bn1.running_mean, expected)
    assert layer.weight.grad.abs().sum() > 0  # of both domains: scale and shift are shared


def test_layers_that_run_again_in_the_backward_pass_are_refused_with_domain_statistics():
    segmentor = tiny_segmentor()
    segmentor['backbone']['with_cp'] = True
    with pytest.raises(ValueError, match=r"'domain', but `student\.backbone.*with_cp=False"):
        MeanTeacher(segmentor, batch_statistics='domain')
    MeanTeacher(segmentor, batch_statistics='separate')


def test_init_weights_makes_the_teacher_a_copy():
    model = build()
    model.init_weights()
    for key, value in model.student.state_dict().items():
        assert torch.equal(value, model.teacher.state_dict()[key])


def test_steps_are_counted_and_checkpoints_restore_them():
    model = build(ema=dict(momentum=0.9))
    for _ in range(3):
        model.after_step()
    assert model.step == 3 and model.iterations.item() == 3
    other = build(ema=dict(momentum=0.9))
    other.load_state_dict(model.state_dict())
    assert other.step == 3
    with torch.no_grad():  # both continue with the same momentum
        for network in (model, other):
            for parameter in network.student.parameters():
                parameter.fill_(1.0)
            network.after_step()
    for a, b in zip(model.teacher.parameters(), other.teacher.parameters()):
        assert torch.equal(a, b)


def test_unsupervised_weights_ramp_up_with_the_steps():
    model = build(unsup_weight=2.0, rampup_iters=4)
    found = []
    for _ in range(6):
        found.append(model.unsup_scale())
        model.after_step()
    assert found == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert build(unsup_weight=2.0).unsup_scale() == 2.0


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
    assert model.step == 0


def test_networks_predict_by_name():
    model = build(predict_on='student').eval()
    image = torch.randn(1, 3, 32, 32)
    student, teacher = model.student(image), model.teacher(image)
    assert torch.equal(model(image), student) and not torch.equal(student, teacher)
    with model.predicting_on('teacher'):
        assert torch.equal(model(image), teacher)
    assert torch.equal(model(image), student)
    assert len(model.predict(image)) == 1


def test_several_networks_predict_their_average_probability():
    both = ['student', 'teacher']
    model = build(predict_on=both).eval()
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
    model = MeanTeacher(cfg, predict_on=['student', 'teacher']).eval()
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
    model = build(predict_on=['student', 'teacher']).eval()
    for name in model.network_names:
        torch.nn.init.normal_(model.network(name).decode_head.conv_seg.weight, std=1e4)
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32))).all()


def test_prediction_is_on_the_teacher_by_default():
    assert build().predict_on == 'teacher'


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(predict_on='techer'), r"'techer'.*\['student', 'teacher'\]"),
        (dict(predict_on=['student', 'x']), r"\['student', 'x'\], but"),
        (dict(predict_on=[]), r'predict_on` is \[\]'),
        (dict(ema=dict(mode='evaluate')), 'ema.mode'),
        (dict(ema=dict(momentum=2)), 'momentum'),
        (dict(threshold=1.2), 'threshold'),
        (dict(unsup_weight=-1), 'unsup_weight'),
        (dict(rampup_iters='x'), 'rampup_iters'),
        (dict(normalizer='vald'), "normalizer` must be one of .*'valid'.*'vald'"),
        (
            dict(ema=dict(momentun=0.9)),
            r"`ema` has unknown keys \['momentun'\].*; known: .*'momentum'",
        ),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_misspelled_settings_are_refused_with_those_that_exist():
    with pytest.raises(
        TypeError, match=r"\['treshold'\]; it has .*'mix'.*'sup_weight'.*'threshold'"
    ):
        build(treshold=0.9)


def test_the_preprocessor_is_that_of_the_segmentor():
    model = build()
    assert isinstance(model.data_preprocessor, SemiDataPreprocessor)
    assert model.data_preprocessor.size == (32, 32)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(NORMALIZE['mean'])
    assert not isinstance(model.student.data_preprocessor, SegDataPreProcessor)
    with pytest.raises(ValueError, match='data_preprocessor` is missing'):
        MeanTeacher({k: v for k, v in tiny_segmentor().items() if k != 'data_preprocessor'})


def test_strong_views_are_normalized_and_keep_the_padding():
    model = build(strong=dict(type='mmdmt.StrongAugment'))
    inputs, samples = semi_batch()
    view = model.strong_view(model.strong, inputs, samples)
    assert view.shape == inputs['unsup_weak'].shape
    assert not torch.equal(view, inputs['unsup_weak'])
    inputs['unsup_valid'][:, :, 20:] = False
    samples['unsup'] = unlabeled_samples(inputs['unsup_valid'])
    view = model.strong_view(model.strong, inputs, samples)
    assert torch.equal(view[..., 20:], inputs['unsup_weak'][..., 20:])
    assert not torch.equal(view[..., :20], inputs['unsup_weak'][..., :20])
    identity = dict(type='mmdmt.StrongAugment', jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)
    view = model.strong_view(MODELS.build(identity), inputs, samples)
    torch.testing.assert_close(view, inputs['unsup_weak'])
    assert model.strong_view(None, inputs, samples) is inputs['unsup_weak']


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
    assert sum('MethodHook' in str(w.message) for w in recwarn) == 1


def test_training_with_the_hook_does_not_warn(recwarn):
    model = build().train()
    model.start_run(max_iters=10, pass_iters=[2, 5])
    model(*semi_batch(), mode='loss')
    assert not any('MethodHook' in str(w.message) for w in recwarn)
    assert model.max_iters == 10 and model.pass_iters == [2, 5]
