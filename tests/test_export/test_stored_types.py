"""A config out of a checkpoint builds registered types only, and so does what export writes."""

import copy
import os

import pytest
import torch
from forked_tool import ForkedTool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from shipped_configs import CONFIGS, load, names_of
from tiny_models import NORMALIZE, tiny_segmentor
from tiny_project import base_config, make_tree, mean_teacher

from mmdmt.checkpoint import UntrustedCheckpointError, save_atomically
from mmdmt.classification.export import export_classifier, plain_classifier_config
from mmdmt.engine.mutual.ensemble import merge_checkpoints
from mmdmt.export.segmentor import export_segmentor, plain_config
from mmdmt.export.stored_types import check_stored_config
from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.registry import MODELS

EVALUATED = 'uint8 if __import__("os").system("touch hacked") else torch.uint8'
CODE = dict(type='subprocess.check_output', args='touch hacked', shell=True)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of its own, in which code that runs would leave a file."""
    monkeypatch.chdir(tmp_path)
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield
    assert not os.path.exists('hacked')


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / 'tree')


def put(cfg, path, value):
    """Set a value in nested dicts and lists by its dotted path."""
    *steps, last = path.split('.')
    for step in steps:
        cfg = cfg[int(step)] if isinstance(cfg, list) else cfg.setdefault(step, {})
    cfg[int(last) if isinstance(cfg, list) else last] = value


def segmentor_config(tree):
    return Config(dict(base_config(tree, 'unused'), default_scope='mmseg')).to_dict()


def classifier_config():
    preprocessor = dict(type='ClsDataPreprocessor', mean=NORMALIZE['mean'], std=NORMALIZE['std'])
    backbone = dict(type='mmdmt.WideResNet', depth=10, widen_factor=1)
    head = dict(type='LinearClsHead', in_channels=64, num_classes=4)
    neck = dict(type='GlobalAveragePooling')
    model = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    model['data_preprocessor'] = preprocessor
    return dict(default_scope='mmpretrain', model=model)


def save(cfg, path='bad.pth', model=None):
    """A checkpoint with a config, and the weights of a model where the config can be built."""
    state = (
        MODELS.build(copy.deepcopy(model)).state_dict() if model else {'backbone.x': torch.ones(1)}
    )
    save_atomically(dict(meta=dict(cfg=Config(cfg).pretty_text), state_dict=state), path)
    return path


@pytest.mark.parametrize(
    ('path', 'value', 'named'),
    [
        ('model.decode_head.loss_decode', CODE, 'model.decode_head.loss_decode.type='),
        ('model.decode_head.loss_decode', [CODE], 'model.decode_head.loss_decode.0.type='),
        ('model.backbone.norm_cfg', CODE, 'model.backbone.norm_cfg.type='),
        ('model.backbone.plugins', [dict(cfg=CODE, stages=(True,))], r'plugins.0.cfg.type='),
        ('model.backbone.init_cfg', [dict(CODE, layer='Conv2d')], 'init_cfg.0.type='),
        ('model.train_cfg.sampler', CODE, 'model.train_cfg.sampler.type='),
        ('model.type', 'os.system', "model.type='os.system'"),
        ('model.backbone.type', 'mmseg.models.backbones.ResNet', 'model.backbone.type='),
        ('model.backbone.type', ['ResNet'], 'model.backbone.type='),
        ('model.backbone.type', 'IoUMetric', 'is not registered there'),
        ('model.backbone._scope_', 'antigravity', "_scope_='antigravity', which is none of"),
        ('model.backbone.padding_mode', 'os.system', "padding_mode='os.system'"),
        ('model.backbone.patch_cfg', dict(conv_type='this'), "conv_type='this'"),
        ('model.backbone.anything', ('os.system',), "anything.0='os.system'"),
        ('model.backbone.type', 'VPD', 'can fetch or unpickle code'),
        ('model.backbone.type', 'mmpretrain.Blip2Caption', 'backbone.type='),
        ('model.backbone.codebook_init_path', 'evil.pkl', 'an address, or a file'),
        ('model.backbone.model_name', 'hf_hub:evil/model', 'an address, or a file'),
        ('tta_model', CODE, 'tta_model.type='),
        ('test_pipeline', [CODE], 'test_pipeline.0.type='),
        ('test_dataloader.dataset.pipeline', [CODE], 'test_pipeline.0.type='),
        ('test_dataloader.dataset.ann_file', 'evil.pkl', 'a file that could hold code'),
        ('test_dataloader.dataset.ann_file', 'http://evil/list.txt', 'an address'),
        ('test_dataloader.collate_fn', CODE, 'test_dataloader.collate_fn.type='),
        ('test_dataloader.worker_init_fn', CODE, 'test_dataloader.worker_init_fn.type='),
        ('test_evaluator', [CODE], 'test_evaluator.type='),
        ('test_evaluator', dict(type='CityscapesMetric', output_dir='/home'), 'place to write to'),
        ('test_evaluator', dict(type='DumpResults', out_file_path='.profile'), 'place to write'),
        ('test_evaluator', dict(type='IoUMetric', collect_dir='/home'), 'collect_dir='),
        ('test_evaluator', dict(type='mmpretrain.ReportVQA', file_path='.profile'), 'file_path='),
        ('test_pipeline', [dict(type='RandomResize', resize_type='torch.hub.load')], 'resize_type'),
        ('test_pipeline', [dict(type='Resize', dtype=EVALUATED)], 'dtype='),
        ('test_pipeline', [dict(type='LoadBiomedicalData', decode_backend='pickle')], 'backend='),
        ('test_pipeline', [dict(type='Resize', backend_args=dict(sys_path='.'))], 'sys_path='),
        ('model.backbone.model_name', 'HF-\nHUB:evil/model', 'an address, or a file'),
        ('visualizer', CODE, 'visualizer.type='),
        ('log_processor', CODE, 'log_processor.type='),
        ('env_cfg.any', dict(type='LocalVisBackend'), 'env_cfg.any.type='),
        ('env_cfg.text', '{{_base_.a}} + 1', 'is no plain value'),
        ('default_scope', 'antigravity', "default_scope='antigravity'"),
    ],
)  # fmt: skip
def test_what_a_stored_config_may_not_ask_for_is_refused(tree, path, value, named):
    cfg = segmentor_config(tree)
    put(cfg, path, value)
    with pytest.raises(UntrustedCheckpointError, match=named) as error:
        export_segmentor(save(cfg), 'out')
    assert 'bad.pth' in str(error.value) and '--trust-checkpoint' in str(error.value)
    assert not os.path.exists('out')


NETWORKS = sorted((CONFIGS / '_base_' / 'models').glob('*.py'))
FOLDERS = sorted(path.parent.name for path in CONFIGS.glob('*/README.md'))


@pytest.mark.parametrize('path', NETWORKS, ids=lambda path: path.stem)
def test_networks_of_the_shipped_configs_are_known(path):
    cfg = Config(dict(model=Config.fromfile(path).model))
    check_stored_config(plain_config(cfg), 'any.pth')


@pytest.mark.parametrize('folder', FOLDERS)
def test_shipped_configs_are_known(folder):
    cfg = load(names_of(folder)[0])
    if cfg.default_scope == 'mmpretrain':
        plain = plain_classifier_config(cfg)
    else:
        sides = 'type' not in cfg.model.get('segmentor', cfg.model)
        network = 'student' if 'segmentor' in cfg.model else ''
        plain = plain_config(cfg, 'student_l' if sides else network)
    check_stored_config(plain, 'any.pth')


def test_keys_that_would_end_their_quotes_in_the_written_config_are_refused():
    key = "a': __import__('os').system('touch hacked'), 'b"
    cfg = Config(dict(model=dict(type='EncoderDecoder', train_cfg={key: 1})))
    with pytest.raises(UntrustedCheckpointError, match='could end its quotes'):
        check_stored_config(cfg, 'bad.pth')


@pytest.mark.parametrize('tool', ['export_segmentor', 'export_classifier'])
def test_a_payload_does_not_run_through_the_tools(tree, tmp_path, tool):
    if tool == 'export_segmentor':
        cfg = mean_teacher(segmentor_config(tree))
        cfg['model']['segmentor']['decode_head']['loss_decode'] = CODE
        place = 'model.decode_head.loss_decode.type'
    else:
        cfg = classifier_config()
        cfg['model']['neck'] = CODE
        place = 'model.neck.type'
    cfg['custom_imports'] = dict(imports=['mmdmt', 'evil'], allow_failed_imports=False)
    (tmp_path / 'evil.py').write_text('open("hacked", "w")')
    run = ForkedTool(
        f'model_converters/{tool}.py',
        save(cfg),
        '--out',
        'out',
        log=tmp_path / 'log',
        PYTHONPATH=str(tmp_path),
    )
    printed = run.finish(check=False)
    assert run.process.exitcode == 1
    assert f"{place}='subprocess.check_output'" in printed
    assert not os.path.exists('out')


def test_a_trusted_checkpoint_may_build_what_it_names(tree, tmp_path, monkeypatch):
    cfg = segmentor_config(tree)
    clean = copy.deepcopy(cfg['model'])
    cfg['model']['decode_head']['loss_decode'] = dict(type='torch.nn.BCELoss')
    save(cfg, model=clean)
    with pytest.raises(UntrustedCheckpointError, match='BCELoss'):
        export_segmentor('bad.pth', 'out')
    exported = export_segmentor('bad.pth', 'out', trusted=['bad.pth'])
    assert Config.fromfile(exported.config).model.decode_head.loss_decode.type == 'torch.nn.BCELoss'


def test_a_named_config_is_the_users_own(tree, tmp_path):
    cfg = segmentor_config(tree)
    own = copy.deepcopy(cfg)
    cfg['model']['decode_head']['loss_decode'] = CODE
    save(cfg, model=own['model'])
    Config(own).dump('own.py')
    exported = export_segmentor('bad.pth', 'out', config='own.py')
    for file in exported[:2]:
        assert b'touch hacked' not in file.read_bytes()


def test_what_is_written_imports_and_loads_nothing_of_the_stored_config(tree, tmp_path):
    cfg = segmentor_config(tree)
    clean = copy.deepcopy(cfg['model'])
    cfg['custom_imports'] = dict(imports=['evil', 'mmdmt'])
    cfg['model']['pretrained'] = 'http://localhost/evil.pth'
    cfg['model']['backbone']['init_cfg'] = dict(type='mmseg.Pretrained', checkpoint='evil.pth')
    cfg['vis_backends'] = [CODE]
    remote = dict(type='WandbVisBackend', init_kwargs=dict(entity='evil'))
    overwriting = dict(type='LocalVisBackend', config_save_file='/home/evil.py')
    cfg['visualizer'] = dict(type='SegLocalVisualizer', vis_backends=[remote, overwriting])
    cfg['default_hooks'] = dict(evil=CODE)
    cfg['custom_hooks'] = [CODE]
    cfg['train_dataloader'] = CODE
    exported = export_segmentor(save(cfg, model=clean), 'out')
    assert 'evil' not in exported.config.read_text()
    assert b'evil' not in exported.checkpoint.read_bytes()
    plain = Config.fromfile(exported.config)
    assert 'custom_imports' not in plain and plain.model.backbone.init_cfg is None


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='TIMMBackbone', model_name='resnet10t.c3_in1k'),
        dict(
            type='mmdmt.TIMMVisionTransformer', model_name='test_vit.r160_in1k', out_indices=(2, 5)
        ),
    ],
)
def test_timm_backbones_fetch_nothing(tree, backbone):
    cfg = segmentor_config(tree)
    overlay = dict(file='weights.safetensors', input_size=(3, 64, 64))
    cfg['model']['backbone'] = dict(backbone, pretrained_cfg_overlay=overlay)
    cfg['model']['decode_head'].update(in_channels=64, in_index=1)
    backbone = dict(cfg['model']['backbone'], pretrained=False)
    save(cfg, model=dict(cfg['model'], backbone=backbone))
    exported = export_segmentor('bad.pth', 'out')
    backbone = Config.fromfile(exported.config).model.backbone
    assert backbone.pretrained is False
    assert backbone.pretrained_cfg_overlay == dict(input_size=(3, 64, 64))


def test_classifiers_of_own_and_stock_types_are_exported():
    cfg = classifier_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        exported = export_classifier(save(cfg, model=cfg['model']), 'out')
    assert exported.foreign_types == ['mmdmt.WideResNet']


def test_labels_and_ensembles_do_not_look_at_stored_configs(tree, tmp_path):
    cfg = segmentor_config(tree)
    model = copy.deepcopy(cfg['model'])
    cfg['model'] = CODE
    cfg['custom_imports'] = dict(imports=['evil'])
    (tmp_path / 'evil.py').write_text('open("hacked", "w")')
    for name in ('a.pth', 'b.pth'):
        save(cfg, name, model)
    dataset = base_config(tree, tmp_path)['train_dataloader']['dataset']['datasets'][1]
    dataset['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    PseudoLabeler('store', tiny_segmentor(), dataset, num_workers=0).run('a.pth', 0.5)
    for kind in ('predictions', 'weights'):
        merge_checkpoints(['a.pth', 'b.pth'], f'{kind}.pth', kind)
        assert b'check_output' not in (tmp_path / f'{kind}.pth').read_bytes()
