"""A temperature in the weights: what mmseg predicts with them, and what cannot hold one."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg.models.decode_heads import FCNHead
from tiny_models import NUM_CLASSES, tiny_segmentor
from tiny_project import SIZE, base_config, make_tree, mean_teacher
from torch import nn

from mmdmt.checkpoint import checkpoint_identity, save_atomically
from mmdmt.export.segmentor import export_segmentor
from mmdmt.export.temperature import scale_logits, temperature_file
from mmdmt.models.forward import image_metas
from mmdmt.registry import MODELS

IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def build(cfg, seed=0):
    torch.manual_seed(seed)
    return MODELS.build(ConfigDict(cfg).copy()).eval()


def saved(cfg, path):
    """A checkpoint as a runner writes it, of a network with scattered weights."""
    cfg = Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt'])))
    model = build(cfg.model)
    for value in model.parameters():
        value.data += torch.randn(value.shape) * 0.1
    classes = [str(index) for index in range(cfg.get('num_classes', NUM_CLASSES))]
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=classes, palette=None))
    save_atomically(dict(meta=meta, state_dict=model.state_dict()), path)
    return path


def predicted(exported):
    model = init_model(str(exported.config), str(exported.checkpoint), device='cpu')
    sample = inference_model(model, IMAGE)
    return sample.seg_logits.data, sample.pred_sem_seg.data


def test_logits_are_divided_and_classes_stay(tree, tmp_path):
    path = saved(mean_teacher(base_config(tree, 'unused')), tmp_path / 'a.pth')
    plain = export_segmentor(path, tmp_path / 'plain', network='teacher')
    scaled = export_segmentor(path, tmp_path / 'scaled', network='teacher', temperature=2.5)
    (logits, pred), (found, again) = predicted(plain), predicted(scaled)
    torch.testing.assert_close(found, logits / 2.5)
    assert torch.equal(again, pred) and len(pred.unique()) > 1
    assert Config.fromfile(scaled.config).temperature == 2.5
    assert 'mmdmt' not in scaled.config.read_text()
    assert 'temperature' not in Config.fromfile(plain.config)
    # Exported once more, the file says what its logits were divided by in all.
    twice = export_segmentor(
        scaled.checkpoint, tmp_path / 'twice', config=scaled.config, temperature=2.0
    )
    torch.testing.assert_close(predicted(twice)[0], logits / 5)
    assert Config.fromfile(twice.config).temperature == 5.0
    copy = export_segmentor(scaled.checkpoint, tmp_path / 'copy')
    assert Config.fromfile(copy.config).temperature == 2.5


def test_the_threshold_of_one_channel_moves_along(tree, tmp_path):
    cfg = base_config(tree, 'unused')
    cfg['num_classes'] = 2
    cfg['model']['decode_head'].update(num_classes=2, out_channels=1, threshold=0.3)
    path = saved(cfg, tmp_path / 'a.pth')
    plain = export_segmentor(path, tmp_path / 'plain')
    scaled = export_segmentor(path, tmp_path / 'scaled', temperature=4.0)
    (prob, pred), (found, again) = predicted(plain), predicted(scaled)
    torch.testing.assert_close(torch.logit(found), torch.logit(prob) / 4)
    # Without a threshold of its own other pixels would be foreground.
    assert torch.equal(again, pred) and not torch.equal((found > 0.3).float(), pred)


def encoded(model, weights):
    model.load_state_dict(weights)
    image = torch.rand(1, 3, SIZE, SIZE)
    torch.manual_seed(0)
    with torch.no_grad():
        return model.encode_decode(torch.rand(1, 3, SIZE, SIZE), image_metas(image))


def cascade():
    cfg = tiny_segmentor()
    head = cfg['decode_head']
    ocr = dict(head, type='OCRHead', ocr_channels=8)
    for key in ('num_convs', 'concat_input'):
        ocr.pop(key)
    return dict(cfg, type='CascadeEncoderDecoder', num_stages=2, decode_head=[head, ocr])


def summed():
    cfg = tiny_segmentor()
    cfg['decode_head'] = dict(
        type='mmdmt.DeepLabV2Head', in_channels=16, in_index=1, num_classes=NUM_CLASSES
    )
    return cfg


@pytest.mark.parametrize('make', [cascade, summed])
def test_heads_of_other_kinds(make):
    model = build(make())
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    scaled = scale_logits(model, make(), weights, 3.0)
    torch.testing.assert_close(encoded(model, scaled), encoded(model, weights) / 3)


class AddingHead(FCNHead):
    """Logits that its last convolution is only a part of."""

    def forward(self, inputs):
        return super().forward(inputs) + inputs[1][:, : self.out_channels]


class ClosedHead(FCNHead):
    """Logits of a layer with another name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.classifier, self.conv_seg = self.conv_seg, nn.Identity()

    def forward(self, inputs):
        return self.classifier(self._forward_feature(inputs))


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (AddingHead, r'logits of AddingHead are not those of decode_head\.conv_seg alone'),
        (ClosedHead, r'ClosedHead has no weights decode_head\.conv_seg\.\*'),
    ],
)
def test_heads_that_cannot_hold_a_temperature_are_refused(kind, message):
    cfg = tiny_segmentor()
    model = build(cfg)
    settings = {key: value for key, value in cfg['decode_head'].items() if key != 'type'}
    model.decode_head = kind(**settings)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        scale_logits(model, cfg, weights, 2.0)
    with pytest.raises(ValueError, match='`temperature` must be in'):
        scale_logits(model, cfg, weights, 0.0)


def test_what_was_fitted_is_found_beside_the_checkpoint(tree, tmp_path):
    path = saved(mean_teacher(base_config(tree, 'unused')), tmp_path / 'a.pth')

    def export(**settings):
        return export_segmentor(path, tmp_path / 'out', temperature='auto', **settings)

    with pytest.raises(FileNotFoundError, match=r'a\.temperature\.json does not exist: run tools'):
        export()
    facts = dict(checkpoint=checkpoint_identity(path), network='teacher', temperature=1.5)
    temperature_file(path).write_text(json.dumps(facts))
    assert Config.fromfile(export(network='teacher').config).temperature == 1.5
    with pytest.raises(ValueError, match="is of the network 'teacher', not of 'student'"):
        export(network='student')
    facts['checkpoint']['sha256'] = '0'
    temperature_file(path).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r'is of another a\.pth'):
        export(network='teacher')
