"""The tools that calibrate a checkpoint and measure its reliability."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from forked_tool import ForkedTool
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from tiny_project import base_config, make_tree, mean_teacher, write_config

from mmdmt.checkpoint import save_atomically
from mmdmt.export.segmentor import export_segmentor
from mmdmt.registry import MODELS

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'calibrate.py'
FLIPS = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]


def load_tool():
    spec = importlib.util.spec_from_file_location('calibrate', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Config and checkpoint of a Mean Teacher whose networks are overconfident."""
    folder = tmp_path_factory.mktemp('run')
    tree = make_tree(folder / 'tree')
    cfg = mean_teacher(base_config(tree, folder / 'work'))
    cfg['model']['segmentor']['data_preprocessor']['size'] = (32, 32)
    names = dict(classes=list('abcd'), palette=[[index] * 3 for index in range(4)])
    for loader in ('val_dataloader', 'test_dataloader'):
        cfg[loader] = dict(cfg[loader], dataset=dict(cfg[loader]['dataset'], metainfo=names))
    cfg['tta_model'], cfg['tta_pipeline'] = dict(type='SegTTAModel'), FLIPS
    config = write_config(cfg, folder / 'tiny.py')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(cfg['model']).copy())
    for network, scale in ((model.student, 400), (model.teacher, 100)):
        network.decode_head.conv_seg.weight.data *= scale
    path = folder / 'iter_1.pth'
    text = Config.fromfile(config).pretty_text
    meta = dict(cfg=text, dataset_meta=names)
    save_atomically(dict(meta=meta, state_dict=model.state_dict()), path)
    return config, path


def test_calibrating_and_exporting(run, tmp_path, capsys):
    config, path = run
    args = [str(config), str(path), '--work-dir', str(tmp_path / 'work'), '--test']
    found = load_tool().main([*args, '--export', str(tmp_path / 'out')])
    assert found['network'] == 'teacher' and found['temperature'] > 1
    for part in ('val', 'test'):  # the same images here, evaluated in two ways
        before, after = found[part]['before'], found[part]['after']
        assert after['NLL'] < before['NLL'] and after['ECE'] < before['ECE']
    assert found['val']['after'] == pytest.approx(found['test']['after'])
    stored = path.with_suffix('.temperature.json')
    assert json.loads(stored.read_text()) == found
    printed = capsys.readouterr().out
    assert 'val, before' in printed and 'test, after' in printed and str(stored) in printed

    auto = export_segmentor(path, tmp_path / 'auto', temperature='auto')
    plain = Config.fromfile(tmp_path / 'out' / 'segmentor.py')
    assert plain.temperature == pytest.approx(found['temperature'])
    weights = [
        torch.load(file, weights_only=True)['state_dict']
        for file in (tmp_path / 'out' / 'segmentor.pth', auto.checkpoint)
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_another_network_has_another_temperature(run, tmp_path):
    config, path = run
    out = tmp_path / 'student.json'
    args = ['--network', 'student', '--out', str(out), '--work-dir', str(tmp_path / 'work')]
    found = load_tool().main([str(config), str(path), *args])
    assert found['network'] == json.loads(out.read_text())['network'] == 'student'
    assert found['temperature'] > 5 and 'test' not in found


def test_reliability_is_measured_by_the_test_tool_with_augmentation_too(run, tmp_path):
    config, path = run
    found = []
    for options in ([], ['--tta']):
        args = [config, path, '--work-dir', tmp_path, '--reliability', *options]
        log = tmp_path / f'{len(found)}.log'
        printed = ForkedTool('test.py', *args, log=log).finish()
        assert 'TrimapIoU' in printed and 'mIoU: ' in printed
        found.append(json.loads((tmp_path / 'reliability.json').read_text())['reliability'])
    first, second = found
    assert first['classes'] == list('abcd') and first['images'] == 3
    assert first['metrics']['ECE_boundary'] != first['metrics']['ECE']
    assert first['count'] != second['count'] and first['pixels'] == second['pixels']
