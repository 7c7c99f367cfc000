"""Published networks of UniMatch V2, with made-up weights, against published logits."""

import json
import math
import runpy
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'data' / 'golden'
converter = runpy.run_path(str(ROOT / 'tools' / 'model_converters' / 'unimatch_v2.py'))
WeightsMismatchError = converter['WeightsMismatchError']


def value(key, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if len(shape) > 1 and 'embed' not in key and 'token' not in key:
        return x / math.sqrt(math.prod(shape[1:]))
    if key.endswith('.gamma'):
        return 0.5 + 0.1 * x
    if key.endswith(('norm.weight', 'norm1.weight', 'norm2.weight')):
        return 1 + 0.1 * x
    return 0.1 * x


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file in the published layout, whose student is another network than its average."""
    layout = json.loads((GOLDEN / 'uv2_small_21.json').read_text())
    ema = {f'module.{key}': value(key, shape) for key, shape in layout}
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


@pytest.mark.parametrize(
    'width, blocks, channels, projected',
    [
        (768, 12, 128, (96, 192, 384, 768)),
        (1024, 24, 256, (256, 512, 1024, 1024)),
        (1536, 40, 384, (1536,) * 4),
    ],
)
def test_larger_encoders_have_the_published_layout(width, blocks, channels, projected):
    """No memory is taken: only names and shapes are compared, of a layout written down here."""
    small = json.loads((GOLDEN / 'uv2_small_21.json').read_text())
    sizes = {64: channels, 1536: 4 * width, 1152: 3 * width, 384: width}
    weights = {}
    for name, shape in small:
        if name.startswith('head.'):
            level = name.split('.')[-2]
            own = {48: projected[0], 96: projected[1], 192: projected[2], 64: channels}
            if name.startswith(('head.projects.3', 'head.resize_layers.3')) or 'layer4' in name:
                own[384] = projected[3]
            else:
                own[384] = width
            new = [own.get(side, side) for side in shape]
            if name.startswith('head.projects.3') and name.endswith('weight'):
                new = [projected[3], width, 1, 1]
            elif name.startswith('head.projects') and name.endswith('weight'):
                new = [projected[int(level)], width, 1, 1]
            weights[name] = torch.empty(new, device='meta')
        elif not name.startswith('backbone.blocks.'):
            new = [sizes.get(side, side) for side in shape]
            weights[name] = torch.empty(new, device='meta')
        elif name.startswith('backbone.blocks.0.'):
            new = [sizes.get(side, side) for side in shape]
            for index in range(blocks):
                key = name.replace('blocks.0.', f'blocks.{index}.')
                if width == 1536 and '.mlp.' in key:
                    # Gated: two maps of 4096 in one layer.
                    key = key.replace('fc1', 'w12').replace('fc2', 'w3')
                    hidden = {'w12': [8192, 1536], 'w3': [1536, 4096]}[
                        'w12' if 'w12' in key else 'w3'
                    ]
                    new_shape = hidden if key.endswith('weight') else hidden[:1]
                    weights[key] = torch.empty(new_shape, device='meta')
                else:
                    weights[key] = torch.empty(new, device='meta')
    model = converter['model_config'](weights)
    assert len(converter['convert_unimatch_v2'](weights, model)) > 200


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


def test_the_config_is_a_plain_text_that_needs_no_download(published, tmp_path):
    converted(published, tmp_path)
    cfg = Config.fromfile(tmp_path / 'segmentor.py')
    assert cfg.model.backbone.pretrained is False
    assert cfg.model.type == 'EncoderDecoder'
    assert cfg.test_pipeline[0].imdecode_backend == 'pillow'  # as everywhere
