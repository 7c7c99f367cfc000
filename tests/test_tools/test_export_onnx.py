"""Graphs give, in a process that knows nothing but onnxruntime, what PyTorch gives."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample
from shipped_configs import without_weights
from tiny_models import NORMALIZE, NUM_CLASSES, tiny_segformer, tiny_segmentor
from tiny_project import ROOT, environment

from mmdmt.export.loading import LoadedSegmentor
from mmdmt.registry import MODELS

PATH = ROOT / 'tools' / 'model_converters' / 'export_onnx.py'
SPEC = importlib.util.spec_from_file_location('export_onnx_tool', PATH)
tool = importlib.util.module_from_spec(SPEC)
sys.modules['export_onnx_tool'] = tool
SPEC.loader.exec_module(tool)

# A user's own program: RGB pixels in, and nothing else known than what lies beside the graph.
PROGRAM = """
import json, sys
import numpy as np, onnxruntime
for folder in sys.argv[1:]:
    session = onnxruntime.InferenceSession(f'{folder}/model.onnx')
    facts = json.load(open(f'{folder}/model.json'))
    pixels = np.load(f'{folder}/pixels.npy').astype(facts['input']['dtype'])
    if not facts['input']['normalized_in_graph']:
        mean, std = (np.array(facts['input'][key])[:, None, None] for key in ('mean', 'std'))
        pixels = ((pixels - mean) / std).astype('float32')
    np.save(f'{folder}/found.npy', session.run(None, {facts['input']['name']: pixels})[0])
"""


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmseg')


def randomized(model):
    """Weights, and statistics of batch norms, that an export could get wrong."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and 'mean' not in name.split('.')[-1]:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(value + 0.05 * noise if 'running' not in name else noise + 0.5)
    return model.eval()


def loaded(cfg):
    torch.manual_seed(0)
    model = randomized(MODELS.build(ConfigDict(cfg)))
    names = getattr(model, 'student_names', [''])
    classes = [f'class {index}' for index in range(model.num_classes)]
    palette = [[index, 0, 0] for index in range(len(classes))]
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64))]
    return LoadedSegmentor(
        model, names, Config(), pipeline, {}, classes, palette, Path('some.pth'), {}
    )


def unet():
    cfg = tiny_segmentor()
    cfg['backbone'] = dict(type='UNet', base_channels=4, num_stages=3, strides=(1,) * 3)
    cfg['backbone'].update(enc_num_convs=(1,) * 3, dec_num_convs=(1,) * 2, downsamples=(True,) * 2)
    cfg['backbone'].update(enc_dilations=(1,) * 3, dec_dilations=(1,) * 2)
    cfg['decode_head'].update(in_channels=4, in_index=2)
    cfg['data_preprocessor']['test_cfg'] = dict(size_divisor=8)
    return cfg


def mobilenet():
    path = ROOT / 'configs' / '_base_' / 'models' / 'deeplabv3plus_mobilenetv2-d16.py'
    cfg = without_weights(Config.fromfile(path)).model.to_dict()
    cfg['backbone'].update(norm_cfg=dict(type='BN'), init_cfg=None)
    cfg['decode_head']['norm_cfg'] = dict(type='BN')
    cfg['decode_head'].update(channels=16, num_classes=NUM_CLASSES)
    cfg.pop('auxiliary_head', None)
    cfg['data_preprocessor'] = dict(type='SegDataPreProcessor', size=(64, 64), **NORMALIZE)
    return cfg


def dpt():
    cfg = tiny_segmentor()
    cfg['backbone'] = dict(
        type='mmdmt.TIMMVisionTransformer',
        model_name='vit_small_patch14_dinov2',
        **dict(embed_dim=16, depth=4, num_heads=2, img_size=70, pretrained=False),
        out_indices=(0, 1, 2, 3),
    )
    cfg['decode_head'] = dict(
        type='mmdmt.DPTHead',
        in_channels=16,
        channels=8,
        project_channels=(4, 4, 8, 8),
        patch_size=14,
        num_classes=NUM_CLASSES,
    )
    return cfg


def blue_first():
    cfg = tiny_segmentor()
    cfg['data_preprocessor'].update(bgr_to_rgb=False, mean=[10, 100, 200], std=[20, 50, 90])
    return cfg


def two_students():
    cfg = tiny_segmentor()
    return dict(type='mmdmt.CPS', segmentor=cfg, predict_on='average')


def ensemble():
    return dict(type='mmdmt.EnsembleSegmentor', members=[blue_first(), unet()])


CASES = {
    'unet': (unet, {}, (24, 40), 8),
    'mobilenet': (mobilenet, dict(output='logits'), (64, 80), 1),
    'segformer': (tiny_segformer, dict(kind='normalized'), (32, 32), None),
    'dpt': (dpt, dict(size=(56, 70)), (56, 70), None),
    'blue first': (blue_first, dict(kind='uint8', output='labels'), (33, 47), 1),
    'average': (two_students, {}, (40, 48), 1),
    'ensemble': (ensemble, {}, (32, 48), 8),
}


def expected(each, pixels):
    """Probabilities by the segmentor's own prediction, from the image as mmcv loads it."""
    size = pixels.shape[2:]
    sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size))
    data = dict(inputs=[torch.from_numpy(pixels[0][::-1].copy())], data_samples=[sample])
    data = each.model.data_preprocessor(data, False)
    with torch.no_grad():
        found = each.model.predict(data['inputs'], data['data_samples'])[0].seg_logits.data
    return found.softmax(dim=0).numpy()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Facts of each export, what PyTorch gives, and what the other process has found."""
    folder, results = tmp_path_factory.mktemp('onnx'), {}
    for name, (build, options, size, _) in CASES.items():
        each, own = loaded(build()), folder / name.replace(' ', '_')
        options = dict(dict(size=(64, 64) if name == 'mobilenet' else (32, 32)), **options)
        done = tool.export_onnx(each, own, **options)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(np.uint8)
        np.save(own / 'pixels.npy', pixels)
        results[name] = [done, expected(each, pixels), own]
    folders = [str(own) for _, _, own in results.values()]
    code = [sys.executable, '-c', PROGRAM, *folders]
    done = subprocess.run(code, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for result in results.values():
        result[2] = np.load(result[2] / 'found.npy')
    return results


@pytest.mark.parametrize('name', CASES)
def test_another_process_finds_what_pytorch_finds(exported, name):
    done, probs, found = exported[name]
    kind = done.content['output']['name']
    if kind == 'labels':
        chosen = np.take_along_axis(probs, found, axis=0)[0]
        assert (probs.max(axis=0) - chosen).max() < 1e-3
        return
    if kind == 'logits':
        found = np.exp(found - found.max(axis=1, keepdims=True))
        found /= found.sum(axis=1, keepdims=True)
    assert np.abs(found[0] - probs).max() < 1e-3
    assert probs.std() > 1e-3  # no constant would do


@pytest.mark.parametrize('name', CASES)
def test_open_and_fixed_sizes_are_said(exported, name):
    size = exported[name][0].content['size']
    step = CASES[name][3]
    assert size['open'] is (step is not None)
    assert size.get('multiple_of') == step


def test_the_file_itself_says_what_it_is(exported):
    done = exported['average'][0]
    props = {each.key: each.value for each in onnx.load(str(done.model)).metadata_props}
    assert json.loads(props['classes']) == [f'class {index}' for index in range(NUM_CLASSES)]
    assert json.loads(props['input'])['range'] == '0 to 255'
    assert props['combined_by'] == 'mean of the probabilities'
    beside = json.loads(done.facts.read_text())
    assert beside['resize_before'] == [dict(type='Resize', scale=[64, 64])]
    assert json.loads(props['size']) == beside['size']


def test_normalization_is_that_of_rgb(exported):
    content = exported['blue first'][0].content['input']
    assert content['mean'] == [200, 100, 10] and content['normalized_in_graph']


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path, monkeypatch):
    each = loaded(tiny_segmentor())

    def impossible(features, *_):
        raise RuntimeError('this head cannot be traced')

    monkeypatch.setattr(each.model.decode_head, 'forward', impossible)
    with pytest.raises(tool.OnnxError, match='this head cannot be traced'):
        tool.export_onnx(each, tmp_path, size=(32, 32))
    assert not list(tmp_path.iterdir())
