"""Published networks of UniMatch V2, with made-up weights, against published logits."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from published_unimatch_v2 import layout, value
from published_unimatch_v2 import logits as published_logits

from mmdmt.finite import NonFiniteError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'data' / 'golden'
converter = runpy.run_path(str(ROOT / 'tools' / 'model_converters' / 'unimatch_v2.py'))
WeightsMismatchError = converter['WeightsMismatchError']


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file in the published layout, whose student is another network than its average."""
    keys = json.loads((GOLDEN / 'uv2_small_21.json').read_text())
    ema = {f'module.{key}': value(key, shape) for key, shape in keys}
    student = {key: each + 0.01 for key, each in ema.items()}
    path = tmp_path_factory.mktemp('published') / 'best.pth'
    torch.save(dict(model=student, model_ema=ema, optimizer={}, epoch=59, previous_best=0.8), path)
    return path


def converted(published, out, **options):
    converter['convert_file'](published, out, **dict(dict(network='ema'), **options))
    return init_model(str(out / 'segmentor.py'), str(out / 'segmentor.pth'), device='cpu')


@pytest.mark.parametrize('name', ['native', 'small'])
def test_logits_are_the_published_ones(published, tmp_path, name):
    model = converted(published, tmp_path)
    golden = np.load(GOLDEN / 'uv2_small_21.npz')
    size = tuple(golden[f'{name}_shape'][1:].tolist())
    image = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        taps = model.backbone(image)
        logits = model.encode_decode(image, [dict(ori_shape=size, img_shape=size)])[0]
    assert tuple(logits.shape) == tuple(golden[f'{name}_shape'])
    found = [[float(tap.mean()), float(tap.std())] for tap in taps]
    np.testing.assert_allclose(found, golden[f'{name}_tap_means'], atol=1e-4)
    np.testing.assert_allclose(logits[:, ::7, ::7].numpy(), golden[name], atol=1e-4)


def test_mmseg_predicts_with_the_result_an_image_of_any_size(published, tmp_path):
    model = converted(published, tmp_path, dataset='voc')
    assert len(model.dataset_meta['classes']) == 21
    image = np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8)
    result = inference_model(model, image)
    assert tuple(result.pred_sem_seg.data.shape) == (1, 45, 71)
    assert tuple(result.seg_logits.data.shape) == (21, 45, 71)


def test_the_student_is_the_other_network(published, tmp_path):
    ema, student = (
        converted(published, tmp_path / each, network=each) for each in ('ema', 'student')
    )
    key = 'decode_head.conv_seg.weight'
    difference = student.state_dict()[key] - ema.state_dict()[key]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.01), rtol=0, atol=1e-6)


SIZES = {
    384: (12, 64, (48, 96, 192, 384)),
    768: (12, 128, (96, 192, 384, 768)),
    1024: (24, 256, (256, 512, 1024, 1024)),
    1536: (40, 384, (1536,) * 4),
}


@pytest.mark.parametrize('width', SIZES)
def test_every_encoder_has_the_published_layout(width):
    """No memory is taken: only names and shapes are compared, of a layout written down here."""
    shapes = layout(width, *SIZES[width], gated=4096 if width == 1536 else 0)
    if width == 384:
        golden = json.loads((GOLDEN / 'uv2_small_21.json').read_text())
        assert shapes == {name: tuple(shape) for name, shape in golden}
    weights = {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
    model = converter['model_config'](weights)
    assert len(converter['convert_unimatch_v2'](weights, model)) > 200


def made_up(shapes, path):
    weights = {name: value(name, shape) for name, shape in shapes.items()}
    torch.save(dict(model={}, model_ema={f'module.{k}': v for k, v in weights.items()}), path)
    return weights


def assert_converted(weights, source, out, blocks, heads, size=(28, 42)):
    """mmseg's API gives the logits of plain operations on the published weights."""
    model = converted(source, out)
    image = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = published_logits(weights, image, blocks, heads)
        found = model.encode_decode(image, [dict(ori_shape=size, img_shape=size)])
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_reference_gives_the_published_logits(published):
    """So that it may stand for the published code at other sizes of the encoder."""
    weights = converter['published_network'](torch.load(published))
    golden = np.load(GOLDEN / 'uv2_small_21.npz')
    size = tuple(golden['small_shape'][1:].tolist())
    image = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(1))
    found = published_logits(weights, image, (2, 5, 8, 11), heads=6)[0, :, ::7, ::7]
    np.testing.assert_allclose(found.numpy(), golden['small'], atol=1e-4)


def test_logits_of_the_base_encoder_are_the_published_ones(tmp_path):
    weights = made_up(layout(768, *SIZES[768]), tmp_path / 'best.pth')
    assert_converted(weights, tmp_path / 'best.pth', tmp_path / 'out', (2, 5, 8, 11), heads=12)


@pytest.mark.parametrize(
    'width, blocks, gated', [(1024, (4, 11, 17, 23), 0), (1536, (9, 19, 29, 39), 341)]
)
def test_logits_of_larger_encoders_are_the_published_ones(
    tmp_path, monkeypatch, width, blocks, gated
):
    """Their blocks and layers, all of them, with fewer channels."""
    name, taken, _, _ = converter['ENCODERS'][width]
    projected = (16, 32, 64, 64)
    monkeypatch.setitem(converter['ENCODERS'], 128, (name, taken, 32, projected))
    full = converter['model_config']

    def narrow(weights):
        cfg = full(weights)
        cfg['backbone'].update(embed_dim=128, num_heads=2)
        return cfg

    monkeypatch.setitem(converter['convert_file'].__globals__, 'model_config', narrow)
    assert taken == blocks
    weights = made_up(layout(128, blocks[-1] + 1, 32, projected, gated), tmp_path / 'best.pth')
    assert_converted(weights, tmp_path / 'best.pth', tmp_path / 'out', blocks, heads=2)


def test_files_of_another_layout_are_refused(published, tmp_path):
    checkpoint = torch.load(published)
    with pytest.raises(WeightsMismatchError, match=r"no 'model_ema'.*\['model'\]"):
        converter['published_network'](dict(model={}))
    weights = converter['published_network'](checkpoint)
    model = converter['model_config'](weights)
    weights.pop('head.projects.0.weight')
    weights['head.projects.1.bias'] = torch.zeros(3)
    weights['extra'] = torch.zeros(1)
    with pytest.raises(WeightsMismatchError) as error:
        converter['convert_unimatch_v2'](weights, model)
    for text in ('1 missing: decode_head.projects.0.weight', '1 unknown: extra', 'bias (3,)'):
        assert text in str(error.value)
    with pytest.raises(WeightsMismatchError, match=r"'cityscapes' has 19 classes, the network 21"):
        converted(published, tmp_path, dataset='cityscapes')
    assert not (tmp_path / 'segmentor.pth').exists()


def test_weights_that_are_none_or_not_finite_are_refused(published, tmp_path):
    checkpoint = torch.load(published)
    with pytest.raises(WeightsMismatchError, match='other things than weights'):
        converter['published_network'](dict(model_ema=dict(a='b')))
    checkpoint['model_ema']['module.head.projects.0.bias'][0] = float('nan')
    torch.save(checkpoint, tmp_path / 'bad.pth')
    with pytest.raises(NonFiniteError, match=r'bad.pth holds NaN.*decode_head.projects.0.bias'):
        converted(tmp_path / 'bad.pth', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_config_is_a_plain_text_that_needs_no_download(published, tmp_path):
    converted(published, tmp_path)
    cfg = Config.fromfile(tmp_path / 'segmentor.py')
    assert cfg.model.backbone.pretrained is False
    assert cfg.model.type == 'EncoderDecoder'
    assert cfg.test_pipeline[0].imdecode_backend == 'pillow'  # as everywhere
