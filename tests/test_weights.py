"""Checkpoints that do not fit are refused, wherever they are loaded, unless that was asked for."""

import pytest
import torch
from forked_tool import ForkedTool
from mmengine.registry import RUNNERS, DefaultScope
from tiny_models import tiny_segmentor
from tiny_project import (
    base_config,
    labeled_only,
    load_config,
    make_tree,
    mean_teacher,
    mutual,
    online,
    write_config,
)

from mmdmt.engine.mutual.preflight import check_chain
from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.registry import MODELS
from mmdmt.weights import (
    CheckpointMismatchError,
    checked_pretrained,
    load_weights,
    widened,
    widened_input,
)

CONTRAST = dict(bank=dict(size=4), projection=dict(channels=5))
HEAD = 'decode_head.conv_seg'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def weights(**settings):
    return build_segmentor(tiny_segmentor(**settings)).state_dict()


def renamed(state):
    return {f'net.{key}': value for key, value in state.items()}


def half(state):
    return {key: value for index, (key, value) in enumerate(state.items()) if index % 2}


def deeper(state):
    """What a deeper network has beyond this one."""
    first = 'backbone.layer1.1.'
    more = {key.replace(first, 'backbone.layer1.2.'): value for key, value in state.items()}
    return {**more, **state}


#: Weights that are not those of the network, and what is said of them.
WRONG = {
    'other names': (
        lambda: renamed(weights()),
        r'EncoderDecoder: 0 of 57 weights match; 57 are missing',
    ),
    'half': (lambda: half(weights()), r'\d+ of 57 weights match; \d+ are missing in the file'),
    'a deeper one': (lambda: deeper(weights()), r'57 of 57 weights match; 10 are in the file only'),
    'other classes': (
        lambda: weights(num_classes=7),
        r'55 of 57 weights match; 2 are of another shape there: decode_head.conv_seg.weight, '
        r"decode_head.conv_seg.bias.*allow_unmatched=\['decode_head.conv_seg'\]",
    ),
    'an online method': (
        lambda: {f'student.{key}': value for key, value in weights().items()},
        r'57 are missing in the file: .*57 are in the file only: student\.',
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_does_not_fit_is_counted_and_named(case):
    state, message = WRONG[case]
    with pytest.raises(CheckpointMismatchError, match=f'any.pth does not fit .*{message}'):
        load_weights(build_segmentor(tiny_segmentor()), dict(state_dict=state()), 'any.pth')


def test_what_may_differ_is_loaded_as_far_as_it_fits():
    model, state = build_segmentor(tiny_segmentor()), weights(num_classes=7)
    load_weights(model, dict(state_dict=state), 'any.pth', HEAD)
    key = 'backbone.conv1.weight'
    assert torch.equal(model.state_dict()[key], state[key])
    state.pop(key)
    with pytest.raises(CheckpointMismatchError, match=r"1 are missing.*=\['backbone.conv1'\]"):
        load_weights(model, state, 'any.pth', [HEAD])


def test_auxiliary_heads_may_stay_in_the_file_of_a_run_that_is_not_resumed():
    model, state = build_segmentor(tiny_segmentor()), weights(auxiliary=True)
    load_weights(model, dict(state_dict=state), 'any.pth')
    key = 'backbone.conv1.weight'
    assert torch.equal(model.state_dict()[key], state[key])
    method = online(dict(model=tiny_segmentor()), 'mmdmt.MeanTeacher')['model']
    load_weights(MODELS.build(method), dict(state_dict=state), 'any.pth')
    with pytest.raises(CheckpointMismatchError, match='7 are in the file only: auxiliary_head'):
        load_weights(model, state, 'any.pth', exact=True)
    fewer = build_segmentor(tiny_segmentor(auxiliary=True))
    state = {k.replace('auxiliary_head', 'auxiliary_head.0'): v for k, v in state.items()}
    with pytest.raises(CheckpointMismatchError, match=r'7 are in the file only: auxiliary_head.0'):
        load_weights(fewer, state, 'any.pth')


def test_counters_prefixes_and_wrappers_do_not_matter():
    state = {k: v for k, v in weights().items() if 'num_batches_tracked' not in k}
    state = {f'module.{key}': value for key, value in state.items()}
    model = build_segmentor(tiny_segmentor())
    wrapped = MODELS.build(dict(type='SegTTAModel', module=model))
    load_weights(wrapped, state, 'any.pth')
    assert torch.equal(model.state_dict()[f'{HEAD}.bias'], state[f'module.{HEAD}.bias'])


def test_a_plain_checkpoint_fits_a_method_with_parts_of_its_own(tree):
    cfg = online(base_config(tree, ''), 'mmdmt.CrossTeacher', contrast=CONTRAST)['model']
    model = MODELS.build(cfg)
    assert any(key.startswith('contrast.') for key in model.state_dict())
    state = weights()
    with pytest.warns(UserWarning, match='start from the same weights'):
        load_weights(model, state, 'any.pth')
    for name in model.network_names:
        assert torch.equal(model.network(name).decode_head.conv_seg.bias, state[f'{HEAD}.bias'])
    with pytest.raises(CheckpointMismatchError, match='8 are of another shape'):
        load_weights(model, weights(num_classes=5), 'any.pth')
    load_weights(model, weights(num_classes=5), 'any.pth', [HEAD])


def method(kind, **settings):
    return MODELS.build(online(dict(model=tiny_segmentor()), kind, **settings)['model'])


@pytest.fixture
def logged(monkeypatch):
    messages = []
    monkeypatch.setattr('mmdmt.weights.print_log', lambda text, **_: messages.append(text))
    return messages


def test_a_method_starts_from_the_networks_of_another(logged):
    """Earlier students, a bank or a threshold start afresh, and may be left in the file."""
    unimatch = method('mmdmt.UniMatch')
    prevmatch = method('mmdmt.UniMatch', previous=dict(every=1))
    load_weights(prevmatch, dict(state_dict=unimatch.state_dict()), 'any.pth')
    key = 'student.backbone.conv1.weight'
    assert torch.equal(prevmatch.state_dict()[key], unimatch.state_dict()[key])
    assert len(prevmatch.previous) == 0
    (said,) = logged
    assert said.startswith('any.pth has no previous.copies: UniMatch starts with new')
    prevmatch.previous.take(prevmatch.student)
    load_weights(unimatch, prevmatch.state_dict(), 'any.pth')
    assert logged[1].startswith('any.pth: left out, as UniMatch has no such state: previous.')
    u2pl = method('mmdmt.U2PL', contrast=dict(queue_size=4, keys_per_class=2))
    load_weights(u2pl, method('mmdmt.MeanTeacher').state_dict(), 'any.pth')
    assert 'contrast.student.0.weight' in logged[2]


def test_networks_of_a_method_have_to_fit_those_of_another():
    student, both = method('mmdmt.UniMatch'), method('mmdmt.FixMatch', labeler='teacher')
    with pytest.raises(CheckpointMismatchError, match=r'missing in the file: teacher\.'):
        load_weights(both, student.state_dict(), 'any.pth')
    with pytest.raises(CheckpointMismatchError, match=r'in the file only: teacher\.'):
        load_weights(student, both.state_dict(), 'any.pth')
    prevmatch = method('mmdmt.UniMatch', previous=dict(every=1))
    with pytest.raises(CheckpointMismatchError, match='1 are missing in the file: previous'):
        load_weights(prevmatch, student.state_dict(), 'any.pth', exact=True)


# --- Pretrained ----------------------------------------------------------------------------------


def initialize(state, path, allowed=(), **init):
    """Initialize a network whose backbone has a file."""
    torch.save(dict(state_dict=state), path)
    cfg = tiny_segmentor()
    cfg['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(path), **init)
    model = build_segmentor(cfg)
    with checked_pretrained(model, allowed):
        model.init_weights()
    return model


def backbone_weights(**settings):
    """A backbone, with what a classifier has besides."""
    cfg = tiny_segmentor()
    cfg['backbone'].update(settings)
    state = build_segmentor(cfg).backbone.state_dict()
    return dict(state, **{'fc.weight': torch.ones(4, 16), 'head.fc.bias': torch.ones(4)})


def test_files_of_a_classifier_fit_a_backbone(tmp_path):
    state = backbone_weights()
    model = initialize(state, tmp_path / 'a.pth')
    assert torch.equal(model.backbone.conv1.weight, state['conv1.weight'])
    whole = {f'backbone.{key}': value for key, value in state.items()}
    model = initialize(whole, tmp_path / 'b.pth', prefix='backbone.')
    assert torch.equal(model.backbone.conv1.weight, state['conv1.weight'])


def test_stages_that_a_file_has_nothing_of_keep_their_initialization(tmp_path):
    state = {k: v for k, v in backbone_weights().items() if not k.startswith('layer1')}
    messages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmdmt.weights.print_log', lambda text, **_: messages.append(text))
        model = initialize(state, tmp_path / 'a.pth')
    assert torch.equal(model.backbone.conv1.weight, state['conv1.weight'])
    assert "a.pth has nothing of ['layer1'] of backbone: they keep" in messages[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (renamed, 'backbone: 0 of 50 weights match; 50 are missing in the file: backbone.conv1'),
        (half, r'backbone: \d+ of 50 weights match'),
        (lambda _: backbone_weights(base_channels=4), 'are of another shape there'),
        (lambda _: backbone_weights(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
         '25 of 50 weights match; 25 are missing'),
        (lambda _: backbone_weights(depth=34), 'are in the file only: backbone.layer1.2.conv1'),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_a_backbone_are_refused(tmp_path, change, message):
    with pytest.raises(CheckpointMismatchError, match=message) as error:
        initialize(change(backbone_weights()), tmp_path / 'a.pth')
    assert 'a.pth does not fit backbone' in str(error.value)


def test_parts_of_a_backbone_may_differ_where_that_is_asked_for(tmp_path):
    state = backbone_weights()
    state['layer2.0.conv1.weight'] = torch.ones(1)
    model = initialize(state, tmp_path / 'a.pth', allowed=['backbone.layer2.0.conv1'])
    assert torch.equal(model.backbone.conv1.weight, state['conv1.weight'])


@pytest.mark.parametrize('online', [False, True])
def test_the_runner_checks_what_parts_begin_with(tree, tmp_path, online):
    torch.save(renamed(backbone_weights()), tmp_path / 'a.pth')
    cfg = base_config(tree, tmp_path, 1)
    cfg['model']['backbone']['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'a.pth')
    )
    cfg = mean_teacher(cfg) if online else labeled_only(cfg)
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py'))
    with pytest.raises(CheckpointMismatchError, match='0 of 50 weights match'):
        runner.train()


# --- Runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tree, tmp_path_factory):
    """Config and checkpoint of a finished run."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(labeled_only(base_config(tree, folder / 'run', 2)), folder / 'tiny.py')
    ForkedTool('train.py', config, log=folder / 'log').finish()
    return config, folder / 'run' / 'iter_2.pth'


def changed(trained, path, change):
    """The checkpoint of the finished run with other weights."""
    content = torch.load(trained[1], weights_only=True)
    content['state_dict'] = change(content['state_dict'])
    torch.save(content, path)
    return path


def other_classes(state):
    return {**state, f'{HEAD}.weight': torch.ones(7, 8, 1, 1), f'{HEAD}.bias': torch.ones(7)}


def finish(tool, *args, log):
    run = ForkedTool(tool, *args, log=log)
    return run.finish(check=False), run.process.exitcode


@pytest.mark.parametrize('change', [renamed, half, other_classes])
def test_the_score_of_a_random_network_is_not_printed(trained, tmp_path, change):
    wrong = changed(trained, tmp_path / 'wrong.pth', change)
    text, code = finish('test.py', trained[0], wrong, log=tmp_path / 'log')
    assert code == 1 and 'CheckpointMismatchError' in text and 'wrong.pth does not fit' in text
    assert 'mIoU:' not in text


def test_a_permission_for_training_is_none_for_the_test(trained, tmp_path):
    config = tmp_path / 'tiny.py'
    config.write_text(trained[0].read_text() + f'\nallow_unmatched = [{HEAD!r}]\n')
    wrong = changed(trained, tmp_path / 'wrong.pth', other_classes)
    text, code = finish('test.py', config, wrong, log=tmp_path / 'log')
    assert code == 1 and 'mIoU:' not in text


def test_other_classes_are_trained_where_that_is_asked_for_and_said(trained, tmp_path):
    wrong = changed(trained, tmp_path / 'wrong.pth', other_classes)
    options = ['--work-dir', tmp_path / 'run', '--cfg-options', f'load_from={wrong}']
    text, code = finish('train.py', trained[0], *options, log=tmp_path / '1.log')
    assert code == 1 and f'--cfg-options allow_unmatched="[\'{HEAD}\']"' in text
    options += [f"allow_unmatched=['{HEAD}']"]
    text, code = finish('train.py', trained[0], *options, log=tmp_path / '2.log')
    assert code == 0, text[-3000:]
    assert f"not loaded, as `allow_unmatched`=['{HEAD}'] says: {HEAD}.weight, {HEAD}.bias" in text


def test_an_average_begins_with_the_same_weights(trained, tree, tmp_path):
    path = changed(trained, tmp_path / 'a.pth', other_classes)
    cfg = labeled_only(base_config(tree, tmp_path / 'run', 1))
    cfg['default_hooks']['ema'] = dict(type='EMAHook')
    cfg.update(load_from=str(path))
    with pytest.raises(CheckpointMismatchError, match='2 are of another shape'):
        RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py')).train()
    cfg.update(allow_unmatched=[HEAD])
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py'))
    runner.train()
    assert runner.iter == 1


def weights_only(content):
    return dict(state_dict=content['state_dict'])


def without_optimizer(content):
    return {key: value for key, value in content.items() if key != 'optimizer'}


@pytest.mark.parametrize('change', [weights_only, without_optimizer])
def test_runs_do_not_resume_from_weights_alone(trained, tree, tmp_path, change):
    torch.save(change(torch.load(trained[1], weights_only=True)), tmp_path / 'a.pth')
    cfg = labeled_only(base_config(tree, tmp_path / 'run', 3))
    cfg.update(load_from=str(tmp_path / 'a.pth'), resume=True)
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py'))
    with pytest.raises(ValueError, match=r'a\.pth holds weights only.* set load_from='):
        runner.train()
    cfg.update(resume=False)
    RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py')).train()


@pytest.mark.parametrize('change', [renamed, other_classes])
def test_runs_do_not_resume_from_other_weights_even_if_initial_ones_may_differ(
    trained, tree, tmp_path, change
):
    cfg = labeled_only(base_config(tree, tmp_path / 'run', 3))
    path = changed(trained, tmp_path / 'a.pth', change)
    cfg.update(load_from=str(path), resume=True, allow_unmatched=[HEAD])
    with pytest.raises(CheckpointMismatchError, match=r'a\.pth does not fit EncoderDecoder'):
        RUNNERS.build(load_config(cfg, tmp_path / 'tiny.py')).train()


def test_initial_weights_of_all_members_are_checked_before_the_first_trains(tree, tmp_path):
    torch.save(weights(), tmp_path / 'good.pth')
    torch.save(weights(num_classes=7), tmp_path / 'bad.pth')
    members = [dict(name=name, load_from=str(tmp_path / f'{name}.pth')) for name in ('good', 'bad')]
    cfg = mutual(base_config(tree, tmp_path / 'run'), members=members)
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'chain.py'))
    with pytest.raises(CheckpointMismatchError, match=r'bad\.pth does not fit'):
        runner.train()
    assert not (tmp_path / 'run' / 'stage_0_good').exists()
    members[1]['cfg_options'] = dict(allow_unmatched=[HEAD])
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'chain.py'))
    assert len(check_chain(runner.builder, str(tmp_path / 'run'))) == 2


def test_labels_are_not_made_by_other_weights(tree, tmp_path):
    dataset = base_config(tree, tmp_path)['train_dataloader']['dataset']['datasets'][1]
    dataset['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    torch.save(renamed(weights()), tmp_path / 'a.pth')
    labeler = PseudoLabeler(str(tmp_path / 'store'), tiny_segmentor(), dataset, num_workers=0)
    with pytest.raises(CheckpointMismatchError, match='0 of 57 weights match'):
        labeler.run(str(tmp_path / 'a.pth'), 0.5)


# --- Images with other bands than the weights


def four_band_network():
    cfg = tiny_segmentor()
    cfg['backbone']['in_channels'] = 4
    cfg['data_preprocessor'].update(
        type='mmdmt.PaddingPreprocessor', mean=[0.0] * 4, std=[1.0] * 4, bgr_to_rgb=False
    )
    return cfg


def test_widened_weights():
    weight = torch.randn(6, 3, 5, 5)
    equal = torch.randn(1, 1, 8, 8)
    expected = torch.conv2d(equal.expand(1, 3, 8, 8), weight)
    for bands in (1, 2, 4, 7):
        for mode in ('repeat', 'mean'):
            wide = widened(weight, bands, mode)
            assert wide.shape == (6, bands, 5, 5)
            got = torch.conv2d(equal.expand(1, bands, 8, 8), wide)
            if mode == 'mean' or bands % 3 == 0:
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(widened(weight, 4, 'repeat')[:, 3], weight[:, 0] * 0.75)
    zero = widened(weight, 5, 'zero')
    assert torch.equal(zero[:, :3], weight)
    assert not zero[:, 3:].any()
    with pytest.raises(ValueError, match='2 bands'):
        widened(weight, 2, 'zero')
    with pytest.raises(ValueError, match='widen_input'):
        widened(weight, 5, 'copy')


@pytest.mark.parametrize('by', ['load_from', 'Pretrained'])
def test_the_first_convolution_is_widened(tmp_path, by):
    narrow = build_segmentor(tiny_segmentor())
    file = str(tmp_path / 'weights.pth')
    if by == 'load_from':
        model = MODELS.build(dict(type='mmdmt.MeanTeacher', segmentor=four_band_network()))
        own = narrow.state_dict()

        def load():
            load_weights(model, dict(state_dict=own), file)
    else:
        torch.save(narrow.backbone.state_dict(), file)
        cfg = four_band_network()
        cfg['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=file)
        model = build_segmentor(cfg)

        def load():
            with checked_pretrained(model):
                model._is_init = model.backbone._is_init = False
                model.init_weights()

    with widened_input(model, None), pytest.raises(CheckpointMismatchError, match='widen_input'):
        load()
    with widened_input(model, 'mean'):
        load()
    networks = [model.student, model.teacher] if by == 'load_from' else [model]
    for network in networks:
        stem = network.backbone.conv1.weight
        assert torch.equal(stem, widened(narrow.backbone.conv1.weight, 4, 'mean'))
    with pytest.raises(CheckpointMismatchError, match='widen_input'):  # only inside the block
        load()


def test_timm_widens_its_own_weights(tmp_path):
    timm = pytest.importorskip('timm')
    narrow = timm.create_model('resnet10t', pretrained=False)
    file = tmp_path / 'timm.pth'
    torch.save(narrow.state_dict(), file)
    backbone = MODELS.build(
        dict(
            type='mmseg.TIMMBackbone',
            model_name='resnet10t',
            features_only=True,
            pretrained=True,
            in_channels=4,
            pretrained_cfg_overlay=dict(file=str(file)),
        )
    )
    first = next(iter(narrow.parameters()))
    found = next(iter(backbone.parameters()))
    assert found.shape[1] == 4
    torch.testing.assert_close(found, widened(first, 4, 'repeat'))
