"""DeepLabV2 weights of AdvSemiSeg, on files of that layout that take no memory."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
import torchvision
from forked_tool import ForkedTool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint

from mmdmt.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
TOOL = 'model_converters/advsemiseg_deeplabv2.py'
converter = runpy.run_path(str(ROOT / 'tools' / TOOL))
convert_advsemiseg = converter['convert_advsemiseg']
WeightsMismatchError = converter['WeightsMismatchError']


def full_layout(num_classes=21):
    """Every weight with its shape; each is one number in memory, another one for every name.

    Written down from torchvision, not from the model that the weights are converted for.
    """
    with torch.device('meta'):
        shapes = {
            name: value.shape
            for name, value in torchvision.models.resnet101().state_dict().items()
            if not name.startswith('fc.') and not name.endswith('num_batches_tracked')
        }
    for index in range(4):
        shapes[f'layer5.conv2d_list.{index}.weight'] = (num_classes, 2048, 3, 3)
        shapes[f'layer5.conv2d_list.{index}.bias'] = (num_classes,)
    return {
        name: torch.tensor([float(number)]).view([1] * len(shape)).expand(shape)
        for number, (name, shape) in enumerate(shapes.items())
    }


def build(num_classes):
    cfg = Config.fromfile(CONFIGS / '_base_' / 'models' / 'deeplabv2_r101-d8.py').model
    cfg.decode_head.num_classes = num_classes
    cfg.backbone.init_cfg = None
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmseg'):
        cfg.pop('data_preprocessor')
        return MODELS.build(cfg)


@pytest.fixture(scope='module')
def layout():
    return full_layout()


def test_every_weight_of_the_model_gets_the_weight_that_belongs_there(layout):
    converted = convert_advsemiseg(layout)
    model = build(21).state_dict()
    assert set(converted) == set(model)
    assert all(converted[name].shape == model[name].shape for name in model)
    taken = {
        'backbone.conv1.weight': 'conv1.weight',
        'backbone.layer3.22.bn2.running_var': 'layer3.22.bn2.running_var',
        'backbone.layer4.0.downsample.0.weight': 'layer4.0.downsample.0.weight',
        'decode_head.conv_seg.0.weight': 'layer5.conv2d_list.0.weight',
        'decode_head.conv_seg.3.bias': 'layer5.conv2d_list.3.bias',
    }
    for target, source in taken.items():
        assert converted[target] is layout[source]
    # Each weight of the file is used once; what else there is counts batches.
    used = [id(value) for name, value in converted.items() if not name.endswith('tracked')]
    assert sorted(used) == sorted(map(id, layout.values()))


def test_names_of_wrappers_are_taken_off(layout):
    wrapped = dict(state_dict={f'module.{name}': value for name, value in layout.items()})
    assert set(convert_advsemiseg(wrapped)) == set(convert_advsemiseg(layout))


def test_the_classifier_stays_out_on_request_alone(layout):
    converted = convert_advsemiseg(layout, without_classifier=True)
    missing = set(build(19).state_dict()) - set(converted)
    assert missing == {
        f'decode_head.conv_seg.{index}.{kind}' for index in range(4) for kind in ('weight', 'bias')
    }


def without(layout, *names):
    return {name: value for name, value in layout.items() if name not in names}


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda x: without(x, 'layer1.0.bn1.weight'), r'1 missing: layer1\.0\.bn1\.weight'),
        (lambda x: dict(x, **{'fc.weight': torch.zeros(1)}), r'1 unknown: fc\.weight'),
        (
            lambda x: dict(x, **{'conv1.weight': torch.zeros(64, 3, 3, 3)}),
            r'1 of another shape: conv1\.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)',
        ),
        (
            lambda x: dict(x, **{'layer5.conv2d_list.2.bias': torch.zeros(19)}),
            r'layer5\.conv2d_list\.2\.bias \(19,\) instead of \(21,\)',
        ),
        (lambda x: without(x, *[f'layer5.conv2d_list.{i}.bias' for i in range(4)]), '4 missing'),
        (lambda x: dict(x, **{'bn1.weight': 'text'}), r'bn1\.weight str instead of'),
        (lambda x: {}, r'528 missing.* and 508 more'),
    ],
)
def test_another_layout_is_refused_with_every_name(layout, change, message):
    with pytest.raises(WeightsMismatchError, match=message):
        convert_advsemiseg(change(copy.copy(layout)))


def test_the_tool_writes_what_a_config_of_dmt_loads(layout, tmp_path):
    source, out = tmp_path / 'coco.pth', tmp_path / 'out' / 'converted.pth'
    torch.save(layout, source)
    assert source.stat().st_size < 1e6
    printed = ForkedTool(TOOL, source, '--out', out, log=tmp_path / 'log').finish()
    assert '632 weights, backbone and classifier' in printed
    content = torch.load(out, weights_only=True)
    assert content['meta']['preprocessing']['bgr_to_rgb'] is False
    member = Config.fromfile(
        CONFIGS / 'dmt' / 'dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py'
    ).mutual.members[0]
    assert member.cfg_options.model.data_preprocessor == content['meta']['preprocessing']
    model = build(21).to_empty(device='cpu')
    load_checkpoint(model, str(out), strict=True)
    assert model.backbone.conv1.weight.unique().tolist() == [0.0]
    last = model.decode_head.conv_seg[3].bias.unique().tolist()
    assert last == [len(layout) - 1]


def test_the_tool_leaves_no_file_when_it_refuses(layout, tmp_path):
    torch.save(without(layout, 'conv1.weight'), tmp_path / 'coco.pth')
    out = tmp_path / 'converted.pth'
    tool = ForkedTool(TOOL, tmp_path / 'coco.pth', '--out', out, log=tmp_path / 'log')
    printed = tool.finish(check=False)
    assert tool.process.exitcode != 0
    assert '1 missing: conv1.weight' in printed and 'coco.pth' in printed
    assert list(tmp_path.glob('*converted*')) == []
