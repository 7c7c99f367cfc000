"""Exported networks run without mmdmt and give the same logits."""

import json
import subprocess
import sys

import pytest
import torch
from forked_tool import ForkedTool
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tiny_models import tiny_segmentor
from tiny_project import (
    SIZE,
    UNFORMATTED,
    base_config,
    environment,
    make_tree,
    mean_teacher,
    online,
)
from train_together import METHODS

from mmdmt.checkpoint import UntrustedCheckpointError, save_atomically
from mmdmt.export.plain import foreign_types
from mmdmt.export.segmentor import export_segmentor, plain_config, select_network
from mmdmt.registry import MODELS

DATASET_META = dict(classes=list('abcd'), palette=[[i, i, i] for i in range(4)])

# Runs in a Python that cannot import mmdmt.
WITHOUT_MMDMT = """
import json, runpy, sys
sys.modules['mmdmt'] = None
import mmseg, torch
from mmseg.apis import init_model
torch.set_num_threads(1)
folders, data, out = json.loads(sys.argv[1]), sys.argv[2], {}
batch = torch.load(data)
for name, folder in folders.items():
    model = init_model(f'{folder}/segmentor.py', f'{folder}/segmentor.pth', device='cpu')
    inputs = model.data_preprocessor(dict(inputs=[batch[0]]), False)['inputs']
    with torch.no_grad():
        out[name] = dict(logits=model(inputs, mode='tensor'), meta=model.dataset_meta)
torch.save(out, data + '.out')
tool = mmseg.__path__[0] + '/.mim/tools/test.py'
folder = folders['student']
sys.argv = [tool, f'{folder}/segmentor.py', f'{folder}/segmentor.pth', '--work-dir', folder]
runpy.run_path(tool, run_name='__main__')
"""


def randomize(model):
    """Give weights and batch-norm statistics values that an export could get wrong."""
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.05)
    return model


def save(cfg, path, model):
    """A checkpoint as a runner writes it."""
    meta = dict(cfg=cfg.pretty_text, dataset_meta=DATASET_META, iter=1)
    save_atomically(dict(meta=meta, state_dict=model.state_dict()), path)
    return path


def logits_of(model, network, batch):
    """Logits of the network inside its own model, through the model's own preprocessor."""
    inputs = model.data_preprocessor(dict(inputs=[batch[0]]), False)['inputs']
    model.eval()
    with torch.no_grad():
        return network(inputs, mode='tensor')


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def online_config(tree):
    cfg = mean_teacher(base_config(tree, 'unused'))
    cfg['model']['segmentor']['pretrained'] = 'open-mmlab://resnet18'
    return Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt'])))


def offline_config(tree):
    cfg = base_config(tree, 'unused')
    cfg['model'].update(
        type='mmdmt.PseudoLabelSegmentor',
        pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0),
    )
    cfg['model']['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='absent.pth')
    return Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt'])))


@pytest.fixture(scope='module')
def exported(tree, tmp_path_factory):
    """Logits before and after export, and what the process without mmdmt printed."""
    folder = tmp_path_factory.mktemp('export')
    batch = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    torch.save(batch, folder / 'batch.pth')

    cfg = online_config(tree)
    online_cfg = cfg.model.copy()
    online_cfg.segmentor.pretrained = None
    online = randomize(MODELS.build(online_cfg))
    online.student.decode_head.conv_seg.bias.data += 1
    checkpoint = save(cfg, folder / 'online.pth', online)
    expected = {
        name: logits_of(online, getattr(online, name), batch) for name in ('student', 'teacher')
    }
    for name in expected:
        export_segmentor(checkpoint, folder / name, network=name)

    cfg = offline_config(tree)
    offline = randomize(MODELS.build(cfg.model.copy()))
    checkpoint = save(cfg, folder / 'offline.pth', offline)
    expected['offline'] = logits_of(offline, offline, batch)
    tool = 'model_converters/export_segmentor.py'
    printed = ForkedTool(
        tool, checkpoint, '--out', folder / 'offline', log=folder / 'tool.log'
    ).finish()
    assert 'imports mmdmt' not in printed

    folders = {name: str(folder / name) for name in expected}
    args = (json.dumps(folders), str(folder / 'batch.pth'))
    done = subprocess.run(
        [sys.executable, '-c', UNFORMATTED + WITHOUT_MMDMT, *args],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return expected, torch.load(folder / 'batch.pth.out'), done.stdout + done.stderr, folder


@pytest.mark.parametrize('name', ['student', 'teacher', 'offline'])
def test_logits_are_the_same_without_mmdmt(exported, name):
    expected, found, _, _ = exported
    assert torch.equal(found[name]['logits'], expected[name])
    assert found[name]['meta'] == DATASET_META


def test_networks_are_not_mixed_up(exported):
    expected = exported[0]
    assert not torch.equal(expected['student'], expected['teacher'])


def test_stock_test_tool_evaluates_the_export(exported):
    assert 'mIoU' in exported[2].split('Iter(test) [3/3]')[-1]


@pytest.mark.parametrize('name', ['student', 'offline'])
def test_exported_config_is_flat_and_plain(exported, name):
    folder = exported[3] / name
    text = (folder / 'segmentor.py').read_text()
    assert 'mmdmt' not in text
    assert '_base_' not in text
    cfg = Config.fromfile(folder / 'segmentor.py')
    assert cfg.model.type == 'EncoderDecoder'
    assert cfg.model.data_preprocessor.type == 'SegDataPreProcessor'
    assert cfg.model.data_preprocessor.size == (24, 24)
    assert cfg.model.get('pretrained') is None
    assert cfg.model.backbone.get('init_cfg') is None
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    loaded = torch.load(folder / 'segmentor.pth', weights_only=True)
    assert sorted(loaded) == ['meta', 'state_dict']


@pytest.mark.parametrize('canvas', [None, dict(size=(48, 64))])
def test_an_export_pads_the_canvas_of_evaluation_in_the_same_color(tree, tmp_path, canvas):
    cfg = base_config(tree, 'unused')
    own = dict(type='mmdmt.PaddingPreprocessor', padding='black', test_cfg=canvas)
    cfg['model']['data_preprocessor'].update(own)
    cfg = Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt'])))
    model = randomize(MODELS.build(cfg.model.copy()))
    exported = export_segmentor(save(cfg, tmp_path / 'a.pth', model), tmp_path)
    # Stock mmseg pads with one number, but pads nothing without a canvas.
    assert exported.foreign_types == (['mmdmt.PaddingPreprocessor'] if canvas else [])
    again = MODELS.build(Config.fromfile(exported.config).model)
    data = dict(
        inputs=[torch.full((3, 30, 40), 9, dtype=torch.uint8)], data_samples=[SegDataSample()]
    )
    first, second = (each.data_preprocessor(data, False)['inputs'] for each in (model, again))
    assert torch.equal(first, second)
    assert first.shape[2:] == ((48, 64) if canvas else (30, 40))


def test_heads_of_mmdmt_are_named_and_imported(tree, tmp_path):
    cfg = base_config(tree, 'unused')
    cfg['model']['decode_head'] = dict(
        type='mmdmt.DeepLabV2Head', in_channels=16, in_index=1, num_classes=4
    )
    cfg = Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt', 'json'])))
    model = randomize(MODELS.build(cfg.model.copy()))
    exported = export_segmentor(save(cfg, tmp_path / 'a.pth', model), tmp_path)
    assert exported.foreign_types == ['mmdmt.DeepLabV2Head']
    plain = Config.fromfile(exported.config)
    assert plain.custom_imports.imports == ['mmdmt']  # nothing in it is of `json`
    again = MODELS.build(plain.model)
    load_checkpoint(again, str(exported.checkpoint), strict=True)


def test_transforms_metrics_and_losses_of_mmdmt_become_plain(tree):
    cfg = offline_config(tree).to_dict()
    cfg['model']['decode_head']['loss_decode'] = dict(type='mmdmt.Some', loss_weight=1.0)
    cfg['test_dataloader']['dataset']['pipeline'][-1]['type'] = 'mmdmt.PackSemiInputs'
    cfg['test_evaluator'] = [dict(type='mmdmt.Calibration'), dict(type='IoUMetric')]
    cfg['test_pipeline'] = [dict(type='LoadImageFromFile'), dict(type='mmdmt.PackSemiInputs')]
    cfg['custom_imports'] = dict(imports=['mmpretrain.models', 'mmdmt'])
    plain = plain_config(Config(cfg))
    assert foreign_types(plain) == []
    assert plain.test_evaluator == dict(type='IoUMetric')
    assert plain.test_pipeline[-1].type == 'PackSegInputs'
    assert plain.model.decode_head.loss_decode.type == 'CrossEntropyLoss'
    assert plain.custom_imports.imports == ['mmpretrain.models']


def test_a_config_file_with_its_overrides_can_be_named(tree, tmp_path):
    cfg = Config(dict(base_config(tree, 'unused'), default_scope='mmseg'))
    model = MODELS.build(cfg.model.copy())
    save_atomically(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    sets = ['*_dataloader.**.data_root']
    cfg.settings = dict(data_root=dict(default=str(tree), sets=sets))
    cfg.data_root = '/moved'
    cfg.dump(tmp_path / 'c.py')
    exported = export_segmentor(tmp_path / 'a.pth', tmp_path / 'out', config=tmp_path / 'c.py')
    assert Config.fromfile(exported.config).test_dataloader.dataset.data_root == '/moved'
    # Without meta in the checkpoint, the classes of the test dataset are written.
    meta = torch.load(exported.checkpoint, weights_only=True)['meta']
    assert meta['dataset_meta']['classes'] == list('abcd')


def test_the_network_that_predicts_is_the_default():
    weights = dict.fromkeys(['student.backbone.a', 'teacher.backbone.a', 'ema_steps', 'bank.x'])
    assert select_network(weights, {}) == 'teacher'
    assert select_network(weights, dict(type='mmdmt.MeanTeacher')) == 'teacher'
    assert select_network(weights, dict(type='mmdmt.DualTeacher')) == 'student'
    assert select_network(weights, dict(predict_on='student')) == 'student'
    assert select_network(weights, {}, 'student') == 'student'
    assert select_network({'backbone.a': 0, 'decode_head.b': 0}, {}) == ''
    for predict_on, network in (
        ('average', 'student'),
        ('teacher_average', 'teacher'),
    ):
        assert select_network(weights, dict(predict_on=predict_on)) == network
    with pytest.raises(
        ValueError, match=r"\['teacher', 'student'\].*no single mmseg.*--network teacher"
    ):
        select_network(weights, dict(predict_on=['teacher', 'student']))
    with pytest.raises(ValueError, match=r"holds \['student', 'teacher'\]"):
        select_network(weights, {}, 'peer')
    with pytest.raises(ValueError, match='holds a single one'):
        select_network({'backbone.a': 0}, {}, 'teacher')


def test_networks_of_a_pair_have_configs_of_their_own(tree, tmp_path):
    cfg = Config(dict(base_config(tree, 'unused'), default_scope='mmseg'))
    left, right = cfg.model, tiny_segmentor()
    right['decode_head']['channels'] = 12
    cfg.model = dict(type='mmdmt.CrossTeacher', segmentor=dict(l=left, r=right))
    model = MODELS.build(cfg.model.copy())
    checkpoint = save(cfg, tmp_path / 'a.pth', model)
    for network, channels in (('student_l', 8), ('teacher_r', 12), ('auto', 8)):
        exported = export_segmentor(checkpoint, tmp_path / network, network=network)
        assert Config.fromfile(exported.config).model.decode_head.channels == channels
        weights = torch.load(exported.checkpoint, weights_only=True)['state_dict']
        name = 'teacher_l' if network == 'auto' else network
        for key, value in getattr(model, name).state_dict().items():
            assert torch.equal(weights[key], value)


@pytest.mark.parametrize('method', METHODS)
def test_every_network_of_a_method_is_exported_and_predicts(tree, tmp_path, method):
    settings = dict(METHODS[method])
    cfg = base_config(tree, 'unused')
    cfg['model']['decode_head']['loss_decode'] = dict(type='mmdmt.OhemCrossEntropy', min_kept=9)
    cfg = online(cfg, f'mmdmt.{settings.pop("type")}', **settings)
    cfg = Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt'])))
    model = randomize(MODELS.build(cfg.model.copy()))
    for index, name in enumerate(model.network_names):
        model.network(name).decode_head.conv_seg.bias.data[index] += 1
    checkpoint = save(cfg, tmp_path / 'a.pth', model)
    batch = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    found = []
    for name in model.network_names:
        exported = export_segmentor(checkpoint, tmp_path / name, network=name)
        assert exported.foreign_types == []
        plain = MODELS.build(Config.fromfile(exported.config).model)
        load_checkpoint(plain, str(exported.checkpoint), strict=True)
        with model.predicting_on(name):
            expected = logits_of(model, model, batch)
        assert torch.equal(logits_of(plain, plain, batch), expected)
        assert not any(torch.equal(expected, other) for other in found)
        found.append(expected)


def test_networks_that_export_finds_no_config_of_are_named():
    cfg = Config(dict(model=dict(type='mmdmt.Mine', first=tiny_segmentor())))
    with pytest.raises(ValueError, match=r"no config of the network 'f1' in mmdmt.Mine"):
        plain_config(cfg, 'f1')


def test_weights_that_do_not_fit_are_refused(tree, tmp_path):
    cfg = Config(dict(base_config(tree, 'unused'), default_scope='mmseg'))
    model = MODELS.build(tiny_segmentor(num_classes=5))
    with pytest.raises(ValueError, match=r'2 have another shape .*conv_seg'):
        export_segmentor(save(cfg, tmp_path / 'a.pth', model), tmp_path)
    del cfg.model['decode_head']['concat_input']
    with pytest.raises(ValueError, match='weights are missing'):
        export_segmentor(save(cfg, tmp_path / 'b.pth', model), tmp_path)


def test_checkpoints_without_a_config_and_unsafe_ones_are_refused(tmp_path):
    save_atomically(dict(state_dict={}, meta={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='stores no config'):
        export_segmentor(tmp_path / 'a.pth', tmp_path)
    save_atomically(dict(state_dict={}, extra=PixelData()), tmp_path / 'b.pth')
    with pytest.raises(UntrustedCheckpointError, match='PixelData'):
        export_segmentor(tmp_path / 'b.pth', tmp_path)
    save_atomically(dict(weight=torch.ones(1)), tmp_path / 'c.pth')
    with pytest.raises(ValueError, match='no state_dict'):
        export_segmentor(tmp_path / 'c.pth', tmp_path)
