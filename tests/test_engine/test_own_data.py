"""From a folder of images to a config, and to trained networks."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from forked_tool import ForkedTool
from mmengine.config import Config
from PIL import Image

from mmdmt.composition import compose_method
from mmdmt.config import resolve_config
from mmdmt.datasets.splits.files import read_list
from mmdmt.engine import own_data
from mmdmt.engine.own_data import (
    config_of_folder,
    method_of_folder,
    summary,
    write_report_of,
)

OFFLINE = dict(HTTPS_PROXY='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')


def make_folder(root, masked=6, bare=4, values=(0, 255), size=(40, 48)):
    rng = np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (root / kind).mkdir(parents=True)
    for index in range(masked + bare):
        mask = np.full(size, values[0], np.uint8)
        for place, value in enumerate(values[1:]):
            mask[8 * place : 8 * place + 8, 8:32] = value
        pixels = rng.integers(0, 200, (*size, 3)) + (mask[..., None] > 0) * 50
        Image.fromarray(pixels.astype(np.uint8)).save(root / 'images' / f'case_{index}.jpg')
        if index < masked:
            Image.fromarray(mask).save(root / 'masks' / f'case_{index}.png')
    return root


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(own_data, 'where_weights_are', lambda name: '')


def lists(cfg):
    return {kind: read_list(cfg[f'{kind}_list']) for kind in ('labeled', 'unlabeled', 'val')}


def test_a_folder_becomes_a_config_that_says_why(offline, tmp_path):
    folder = make_folder(tmp_path / 'polyps')
    path = config_of_folder(str(folder), str(tmp_path / 'run'), ['background', 'polyp'])
    cfg = Config.fromfile(path)
    assert {kind: len(names) for kind, names in lists(cfg).items()} == dict(
        labeled=5, unlabeled=4, val=1
    )
    text = Path(path).read_text()
    for reason in (
        'there is no validation part: 1 of 6 images with masks were drawn',
        'the masks hold the values [0, 255]',
        'images have about 48 x 40 pixels',
        'a small U-Net, which learns from scratch',
        '4 images without masks',
    ):
        assert f'# {reason[:1].upper()}{reason[1:]}' in text
    assert cfg.mask_values == {0: 'background', 255: 'polyp'} and cfg.crop_size == (32, 32)
    method, settings, _ = method_of_folder(path)
    assert method == 'mean_teacher' and settings == dict(rampup_iters=150)
    composed = compose_method(cfg, method, method_options=settings, options=dict(max_iters=20))
    composed = resolve_config(composed)
    assert composed.train_cfg.max_iters == 20 and composed.model.rampup_iters == 150
    loaders = composed.train_dataloader.dataset.datasets
    assert [part.data_prefix.img_path for part in loaders] == [str(folder / 'images')] * 2
    assert composed.val_dataloader.dataset.data_prefix.seg_map_path == str(folder / 'masks')
    assert Config.fromstring(composed.pretty_text, '.py').to_dict() == composed.to_dict()


def test_methods_for_thousands_of_labels_get_settings_for_few(offline, tmp_path):
    folder = make_folder(tmp_path / 'data')
    path = config_of_folder(str(folder), str(tmp_path))
    for method in ('dual-teacher', 'cross_teacher', 'dmt', 'cps'):
        name, settings, why = method_of_folder(path, method)
        assert (name, why) == (method, 'as --method says') and bool(settings) == (method != 'cps')
        composed = compose_method(Config.fromfile(path), name, method_options=settings)
        part = composed.mutual.pseudo_loss if method == 'dmt' else composed.model
        assert method != 'dual-teacher' or part.shift_length == 100
        assert method != 'cross_teacher' or part.contrast.start == 0.5
        assert method != 'dmt' or part.gamma1 == 1.0


def test_the_batch_fits_into_the_memory_of_the_gpu(offline, monkeypatch, tmp_path):
    folder = make_folder(tmp_path / 'data', size=(200, 220))
    sizes = {}
    for memory in (2**30, 2**37):
        monkeypatch.setattr(own_data, 'gpu_memory', lambda m=memory: m)
        cfg = Config.fromfile(config_of_folder(str(folder), str(tmp_path / 'run')))
        sizes[memory] = cfg.batch_size
    assert cfg.crop_size == (192, 192) and cfg.max_iters == 8000
    assert 2 <= sizes[2**30] < sizes[2**37] == 16


def test_labels_are_drawn_and_the_other_masks_are_not_used(offline, tmp_path):
    folder = make_folder(tmp_path / 'data', masked=10, bare=0)
    path = config_of_folder(str(folder), str(tmp_path / 'run'), labels=3)
    found = lists(Config.fromfile(path))
    assert [len(found[kind]) for kind in ('labeled', 'unlabeled', 'val')] == [3, 5, 2]
    assert len({name for names in found.values() for name in names}) == 10
    again = config_of_folder(str(folder), str(tmp_path / 'again'), labels=3)
    assert lists(Config.fromfile(again)) == found


@pytest.mark.parametrize(
    ('values', 'classes', 'given', 'expected'),
    [
        ((0, 1, 2), None, None, {}),
        ((0, 1, 255), ['a', 'b'], None, {}),  # 255 is void
        ((0, 255), None, None, {0: 'class_0', 255: 'class_255'}),
        ((0, 255), ['a', 'b'], None, {0: 'a', 255: 'b'}),
        ((0, 255), ['a', 'b', 'c'], None, {}),  # ids of three classes, of which one is there
        ((0, 100, 200), ['a', 'b', 'c'], None, {0: 'a', 100: 'b', 200: 'c'}),
        ((0, 100, 255), ['a', 'b'], None, {0: 'a', 100: 'b', 255: None}),
        ((0, 255), ['polyp', 'background'], [255, 0], {255: 'polyp', 0: 'background'}),
    ],
)
def test_values_of_masks_become_classes(offline, values, classes, given, expected, tmp_path):
    folder = make_folder(tmp_path / 'data', values=values)
    path = config_of_folder(str(folder), str(tmp_path), classes, mask_values=given)
    cfg = Config.fromfile(path)
    assert cfg.mask_values == expected
    assert cfg.num_classes == len(cfg.metainfo.classes)


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        (dict(bare=0), {}, 'nothing to learn from without one: --labels N'),
        ({}, dict(labels=50), 'no 50 are left to train on'),
        ({}, dict(labels=0), '--labels 0: 5 images have masks'),
        (dict(values=(0, 7, 9)), dict(classes=['a', 'b']), r'values 0, 7, 9, .* 2 classes'),
        ({}, dict(mask_values=[0]), r'values 0, 255, .* 1 classes'),
    ],
)
def test_what_does_not_fit_is_refused(offline, arguments, options, message, tmp_path):
    folder = make_folder(tmp_path / 'data', **arguments)
    with pytest.raises(ValueError, match=message):
        config_of_folder(str(folder), str(tmp_path / 'run'), **options)


def test_a_folder_is_trained_on_by_one_command(tmp_path):
    folder, run = make_folder(tmp_path / 'polyps'), tmp_path / 'run'
    config = tmp_path / 'three_lines.py'  # as --data FOLDER --classes background,polyp
    config.write_text(f"data = {str(folder)!r}\nclasses = ['background', 'polyp']\n")
    text = ForkedTool(
        'train.py',
        *(config, '--work-dir', run),
        *('--cfg-options', 'max_iters=2', 'batch_size=4', 'train_dataloader.num_workers=0'),
        *('train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0'),
        'val_dataloader.persistent_workers=False',
        log=tmp_path / 'log.txt',
        **OFFLINE,
    ).finish()
    for method, kind in (('supervised', 'EncoderDecoder'), ('mean_teacher', 'mmdmt.MeanTeacher')):
        assert (run / method / 'iter_2.pth').is_file()
        assert Config.fromfile(run / method / 'config.py').model.type == kind
    shown = text[text.index('On the validation images:') :]
    assert 'supervised' in shown and 'mean_teacher' in shown and 'predict.py' in shown


def test_the_table_reads_what_runs_have_written(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/final.json').write_text('{"metrics": {"mIoU": 51.234, "student/mIoU": 1}}')
    text = summary({'supervised': str(tmp_path / 'a'), 'cps': str(tmp_path / 'b')})
    assert 'supervised       mIoU 51.23' in text and 'cps              no final.json' in text
    assert text.endswith(f'tools/predict.py {tmp_path / "b"} FOLDER_OF_IMAGES --out predictions')


def test_the_report_is_written_where_its_packages_are(monkeypatch):
    asked = []
    module = ModuleType('mmdmt.evaluation.report')
    module.write_report = lambda runs, out: asked.append((runs, out))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    runs = {'supervised': 'run/supervised', 'cps': 'run/cps'}
    assert write_report_of(runs, 'run/report.html') == 'Report: run/report.html'
    assert asked == [(['supervised=run/supervised', 'cps=run/cps'], 'run/report.html')]
    monkeypatch.setitem(sys.modules, module.__name__, None)
    assert write_report_of(runs, 'x.html').startswith('No report')
