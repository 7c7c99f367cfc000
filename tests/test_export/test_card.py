import json

import torch
import yaml
from mmengine.config import Config
from safetensors.torch import load_file

from mmdmt.export.card import write_hub_folder

CFG = Config(
    dict(
        model=dict(
            data_preprocessor=dict(mean=[1.0], std=[2.0], bgr_to_rgb=True),
            test_cfg=dict(mode='whole'),
        ),
        test_pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(8, 4))],
    )
)
RECORD = dict(metrics=dict(mIoU=45.678, aAcc=80.0), method='mean_teacher', why='the best of all')


def make(folder, record=RECORD, **fields):
    state = dict(a=torch.arange(6.0).view(2, 3).t())
    meta = dict(dataset_meta=dict(classes=['background', 'ä polyp']))
    torch.save(dict(state_dict=state, meta=meta), folder / 'segmentor.pth')
    write_hub_folder(folder, 'my-model', CFG, record, fields)
    text = (folder / 'README.md').read_text()
    _, head, body = text.split('---\n', 2)
    return yaml.safe_load(head), body


def test_the_front_matter_is_yaml_with_the_fields_of_a_hub(tmp_path):
    head, body = make(tmp_path, license='apache-2.0', data='colonoscopy frames')
    assert head['license'] == 'apache-2.0'
    assert head['library_name'] == 'mmsegmentation'
    assert head['pipeline_tag'] == 'image-segmentation'
    assert 'mean_teacher' in head['tags']
    (entry,) = head['model-index']
    assert entry['name'] == 'my-model'
    (result,) = entry['results']
    assert result['task']['type'] == 'image-segmentation'
    assert result['dataset']['name'] == 'colonoscopy frames'
    assert result['metrics'][0] == dict(type='mIoU', value=45.678, name='mIoU')
    assert '1: ä polyp' in body and '| mIoU | 45.68 |' in body and 'the best of all' in body


def test_what_nobody_stated_is_said_to_be_not_stated(tmp_path):
    head, body = make(tmp_path, record={})
    assert head['license'] == 'unknown' and 'model-index' not in head
    assert 'License of the training data: not stated' in body
    assert 'License of the weights: not stated' in body


def test_weights_and_preprocessing_lie_beside_it(tmp_path):
    make(tmp_path)
    facts = json.loads((tmp_path / 'preprocessing.json').read_text())
    assert facts['mean'] == [1.0] and facts['channels'] == 'RGB'
    assert facts['resize'] == [dict(type='Resize', scale=[8, 4])]
    weights = load_file(tmp_path / 'segmentor.safetensors')
    assert torch.equal(weights['a'], torch.arange(6.0).view(2, 3).t())
