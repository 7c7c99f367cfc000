"""Testing and exporting a classifier that the chain trained."""

import copy
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_classification import CLASSES, RUNTIME, classification_config, make_folders
from tiny_project import UNFORMATTED, environment, load_config

import mmdmt.classification  # noqa: F401
from mmdmt.classification.export import export_classifier, plain_classifier_config
from mmdmt.registry import MODELS, RUNNERS

USE_EXPORTED = """
import json, sys, torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain import get_model

network = get_model(sys.argv[1], sys.argv[2]).eval()
scores = network(torch.ones(1, 3, 8, 8))[0].tolist()
cfg = Config.fromfile(sys.argv[1])
cfg.update(work_dir='tested', load_from=sys.argv[2])
print(json.dumps(dict(Runner.from_cfg(cfg).test(), scores=scores)))
"""
TOOLS = Path(__file__).resolve().parents[2] / 'tools'
_numbers = itertools.count()


def run_tool(monkeypatch, path, *args):
    if path.name == 'test.py':
        # Two runs of one name, which ends with the second, share mmengine's logger and visualizer.
        args = (*args, '--cfg-options', f'experiment_name=tool_{next(_numbers)}')
    spec = importlib.util.spec_from_file_location(path.stem + '_tool', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', [str(path), *map(str, args)])
    return tool.main()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(config file, checkpoint) of labeled-only training of a ResNet of mmpretrain."""
    root = tmp_path_factory.mktemp('trained')
    cfg = classification_config(make_folders(root / 'data'), root / 'work')
    cfg['model'].update(
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=64),
    )
    loader = cfg['train_dataloader']
    loader['dataset']['datasets'] = loader['dataset']['datasets'][:1]
    loader['sampler']['source_ratio'] = [1]
    config = load_config(cfg, root / 'config.py', RUNTIME)
    runner = RUNNERS.build(config)
    runner.train()
    return root / 'config.py', root / 'work' / 'iter_4.pth'


def test_the_test_tool_prints_the_accuracy(trained, tmp_path, monkeypatch, capsys):
    run_tool(monkeypatch, TOOLS / 'test.py', *trained, '--work-dir', tmp_path)
    assert 'accuracy/top1' in capsys.readouterr().out
    assert list(tmp_path.rglob('*.json'))


def test_pictures_of_predictions(trained, tmp_path, monkeypatch):
    args = [*trained, '--work-dir', tmp_path / 'w', '--show-dir', tmp_path / 'pictures']
    run_tool(monkeypatch, TOOLS / 'test.py', *args)
    assert list((tmp_path / 'pictures').rglob('*.png'))


def test_label_images_are_for_segmentation(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='--out'):
        run_tool(monkeypatch, TOOLS / 'test.py', *trained, '--out', tmp_path / 'labels')


def test_exported_network_is_plain_mmpretrain(trained, tmp_path, monkeypatch):
    from mmpretrain import get_model

    config, checkpoint = trained
    run_tool(
        monkeypatch,
        TOOLS / 'model_converters' / 'export_classifier.py',
        *[checkpoint, '--out', tmp_path],
    )
    text = (tmp_path / 'classifier.py').read_text()
    assert 'mmdmt' not in text and 'gamma1' not in text
    network = get_model(str(tmp_path / 'classifier.py'), str(tmp_path / 'classifier.pth'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        original = MODELS.build(Config.fromfile(str(config)).model).eval()
    stored = torch.load(checkpoint, map_location='cpu', weights_only=True)
    original.load_state_dict(stored['state_dict'])
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(images), original(images))
    exported = torch.load(tmp_path / 'classifier.pth', map_location='cpu', weights_only=True)
    assert set(exported) == {'meta', 'state_dict'}
    assert tuple(exported['meta']['dataset_meta']['classes']) == ('blue', 'green', 'red')


def test_the_exported_classifier_predicts_files(trained, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    config, checkpoint = trained
    exported = export_classifier(checkpoint, tmp_path)
    inferencer = ImageClassificationInferencer(str(exported.config), str(exported.checkpoint))
    image = config.parent / 'data' / 'test' / 'red' / '000.png'
    assert inferencer(str(image))[0]['pred_class'] in ('blue', 'green', 'red')


def test_parts_that_mmpretrain_lacks_are_told(tmp_path):
    cfg = classification_config(tmp_path, tmp_path)
    plain = plain_classifier_config(Config(cfg))
    assert plain.custom_imports['imports'] == ['mmdmt.classification']
    assert plain.model.type == 'ImageClassifier'


def test_a_listed_test_set_is_tested_by_the_exported_config_in_a_new_process(tmp_path):
    """Of a network that mmpretrain lacks: nothing is registered there but what is imported."""
    cfg = classification_config(make_folders(tmp_path / 'data'), tmp_path / 'work')
    cfg['test_dataloader']['dataset'] = cfg['val_dataloader']['dataset']
    cfg = Config(dict(cfg, default_scope='mmpretrain'))
    network = MODELS.build(copy.deepcopy(cfg.model))
    checkpoint = tmp_path / 'iter_1.pth'
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=network.state_dict(), meta=meta), checkpoint)
    exported = export_classifier(checkpoint, tmp_path / 'exported')
    assert exported.foreign_types == ['mmdmt.ListedDataset', 'mmdmt.WideResNet']
    code = UNFORMATTED + USE_EXPORTED
    done = subprocess.run(
        [sys.executable, '-c', code, str(exported.config), str(exported.checkpoint)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = network.eval()(torch.ones(1, 3, 8, 8)).tolist()
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found['scores'] == pytest.approx(expected[0], abs=1e-5)
    assert 0 <= found['accuracy/top1'] <= 100


def test_segmentors_are_refused():
    with pytest.raises(ValueError, match='export_segmentor'):
        plain_classifier_config(Config(dict(model=dict(type='EncoderDecoder'))))
