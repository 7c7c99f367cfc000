"""From a folder of images to a config, and to trained networks."""

import re
import runpy
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from forked_tool import ForkedTool
from mmengine.config import Config
from PIL import Image

from mmdmt.composition import compose_method
from mmdmt.config import resolve_config
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.datasets.splits.files import read_list
from mmdmt.engine import own_data
from mmdmt.engine.own_data import config_of_folder, method_of_folder
from mmdmt.evaluation.label_source import LabelSource
from mmdmt.registry import DATASETS, MODELS

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
        'the masks hold the values 0, 255',
        'images have about 48 x 40 pixels',
        'a small U-Net, which learns from scratch',
        '4 images without masks',
    ):
        assert f'# {reason[:1].upper()}{reason[1:]}' in text
    assert cfg.mask_values == {0: 'background', 255: 'polyp'} and cfg.crop_size == (32, 32)
    method, settings, _ = method_of_folder(path)
    short = {'ema.momentum': 0.95, 'threshold': 0.9}
    assert method == 'mean_teacher' and settings == dict(rampup_iters=150, **short)
    assert method_of_folder(path, length=4000)[1] == dict(rampup_iters=1000)
    composed = compose_method(cfg, method, method_options=settings, options=dict(max_iters=20))
    composed = resolve_config(composed)
    assert composed.train_cfg.max_iters == 20 and composed.model.rampup_iters == 150
    assert composed.model.ema.momentum == 0.95 and composed.model.threshold == 0.9
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
    for memory in (2**29, 2**37):
        monkeypatch.setattr(own_data, 'gpu_memory', lambda m=memory: m)
        cfg = Config.fromfile(config_of_folder(str(folder), str(tmp_path / 'run')))
        sizes[memory] = cfg.batch_size
    assert cfg.crop_size == (192, 192) and cfg.max_iters == 8000
    assert 2 <= sizes[2**29] < sizes[2**37] == 16


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
        (dict(values=(0, 7, 9)), dict(classes=['a', 'b']), r'values 0, 7, 9 .* 2 classes'),
        ({}, dict(mask_values=[0]), r'values 0, 255 .* 1 classes'),
    ],
)
def test_what_does_not_fit_is_refused(offline, arguments, options, message, tmp_path):
    folder = make_folder(tmp_path / 'data', **arguments)
    with pytest.raises(ValueError, match=message):
        config_of_folder(str(folder), str(tmp_path / 'run'), **options)


def picture(path, kind='RGB', size=(48, 40), value=0):
    """A noisy image, or a mask with a square of a value, in the mode ``kind``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    pixels = rng.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    if value:
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[8:24, 8:32] = value
    if kind == 'npy':
        np.save(path, pixels.astype(np.uint16) * 7)
    elif kind == 'I;16':
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path)
    elif kind == 'P':
        image = Image.fromarray((pixels[..., 0] > 0).astype(np.uint8), 'P')
        image.putpalette([10, 10, 10, 250, 0, 0])
        image.save(path)
    else:
        image = Image.fromarray(pixels)
        image = image if kind == 'RGB' else image.convert(kind)
        image.save(path, 'JPEG' if path.suffix.lower() in ('.jpg', '.jpeg') else 'PNG')


def strangers_folder(root, kinds, mask='L', mask_name='masks/{}.png', value=255):
    """Six images with masks and two without, of modes and suffixes by turns."""
    for index in range(8):
        suffix, kind = kinds[index % len(kinds)]
        picture(root / 'images' / f'my image {index}{suffix}', kind)
        if index < 6:
            picture(root / mask_name.format(f'my image {index}'), mask, value=value)
    (root / 'masks').mkdir(exist_ok=True)
    (root / 'masks/Thumbs.db').write_bytes(b'no image')
    return root


def loaded(path, method='mean_teacher'):
    """Problems of the data of a composed config, and its data sets of labeled and other images."""
    cfg = resolve_config(compose_method(Config.fromfile(path), method))
    train = cfg.train_dataloader.dataset
    problems = check_dataset(train, cfg.val_dataloader.dataset, progress=False)
    val = DATASETS.build(cfg.val_dataloader.dataset)
    return cfg, problems, [*map(DATASETS.build, train.datasets), val]


JPG, PNG = ('.jpg', 'RGB'), ('.png', 'RGB')
STRANGE = {
    'suffixes in upper case': dict(kinds=[('.JPG', 'RGB')]),
    'several suffixes': dict(kinds=[JPG, PNG, ('.JPG', 'RGB'), ('.PNG', 'L')]),
    'gray images and some with alpha': dict(kinds=[('.png', 'L'), ('.png', 'RGBA'), PNG]),
    'masks named after images': dict(kinds=[JPG, PNG], mask_name='masks/{}_mask.png'),
    'masks with a palette': dict(kinds=[JPG], mask='P'),
    'masks with three equal channels': dict(kinds=[JPG], mask='RGB'),
    'masks with alpha': dict(kinds=[JPG], mask='RGBA'),
    'masks as JPEG': dict(kinds=[PNG], mask='L', mask_name='masks/{}.jpg'),
    'masks as JPEG of colors': dict(kinds=[PNG], mask='RGB', mask_name='masks/{}.jpeg'),
    'colors': dict(kinds=[PNG], mask='RGB', value=(200, 0, 30)),
    'arrays': dict(kinds=[('.npy', 'npy')]),
    '16 bits': dict(kinds=[('.png', 'I;16')]),
}


@pytest.mark.parametrize('case', STRANGE)
def test_a_strangers_folder_works(offline, case, tmp_path):
    folder = strangers_folder(tmp_path / 'my data', **STRANGE[case])
    path = config_of_folder(str(folder), str(tmp_path / 'run'), ['background', 'polyp'])
    cfg, problems, (labeled, unlabeled, val) = loaded(path)
    assert not problems and (len(labeled), len(unlabeled), len(val)) == (5, 2, 1)
    bands = MODELS.build(cfg.model.segmentor).backbone.encoder[0][0].convs[0].conv.in_channels
    for dataset in (labeled, val):
        for sample in dataset:
            assert sample['inputs'].shape[0] == bands
            ids = set(sample['data_samples'].gt_sem_seg.data.unique().tolist())
            assert 0 in ids and ids <= {0, 1, 255}
    assert {1} <= set(val[0]['data_samples'].gt_sem_seg.data.unique().tolist())
    assert {sample['inputs'].shape[0] for sample in unlabeled} == {bands}
    assert bands == (1 if case == '16 bits' else 3)


def test_truth_of_images_that_are_not_labeled_is_found(offline, tmp_path):
    folder = strangers_folder(tmp_path / 'data', [JPG, PNG])
    path = config_of_folder(str(folder), str(tmp_path / 'run'), ['background', 'polyp'], labels=2)
    cfg, problems, _ = loaded(path)
    assert not problems
    source = LabelSource(cfg)
    truths = {name: source.truth(name, (40, 48)) for name in source.image_paths}
    assert len(truths) == 5 and sum(mask is None for mask in truths.values()) == 2
    assert all(set(np.unique(mask)) == {0, 1} for mask in truths.values() if mask is not None)


def test_a_mask_of_another_size_is_named(offline, tmp_path):
    folder = strangers_folder(tmp_path / 'data', [JPG])
    picture(folder / 'masks/my image 3.png', 'L', size=(30, 20), value=255)
    path = config_of_folder(str(folder), str(tmp_path / 'run'), ['background', 'polyp'])
    (problem,) = loaded(path)[1]
    assert (
        problem.kind == 'mask size' and 'my image 3.png is 30x20, its image 48x40' in problem.found
    )


def test_whole_cases_validate(offline, tmp_path):
    for case in range(5):
        for number in range(4):
            place = tmp_path / 'data' / f'case_{case}'
            picture(place / f'images/{number}.png')
            if number < 2:
                picture(place / f'masks/{number}.png', 'L', value=255)
    path = config_of_folder(str(tmp_path / 'data'), str(tmp_path / 'run'))
    _, problems, (labeled, unlabeled, val) = loaded(path)
    assert not problems and (len(labeled), len(unlabeled), len(val)) == (8, 8, 2)

    def cases(dataset):
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        return {re.search(r'case_\d', info['img_path']).group() for info in infos}

    assert len(cases(val)) == 1 and not cases(val) & (cases(labeled) | cases(unlabeled))
    text = Path(path).read_text()
    assert 'all of 1 of 5 folders: case_' in text and '2 images there without masks' in text


def test_a_folder_elsewhere_joins_the_unlabeled_images(offline, tmp_path):
    folder = strangers_folder(tmp_path / 'data', [JPG])
    for name in ('a.PNG', 'b/c.jpeg'):
        picture(tmp_path / 'elsewhere' / name)
    path = config_of_folder(
        str(folder), str(tmp_path / 'run'), unlabeled=str(tmp_path / 'elsewhere')
    )
    _, problems, (labeled, unlabeled, _) = loaded(path)
    assert not problems and (len(labeled), len(unlabeled)) == (5, 4)
    assert all(len(sample['inputs']) == 3 for sample in unlabeled)


@pytest.mark.parametrize(
    ('settings', 'options', 'message'),
    [
        ({}, dict(classes=['a', 'b', 'c']), r'the values 0, 255 \(255 is in .* 3 classes'),
        (dict(value=70), dict(classes=['a', 'b', 'c']), r'the values 0, 70 \(70 is in .*/masks/'),
        (
            dict(mask='RGB', value=(1, 2, 3)),
            dict(classes=['a', 'b', 'c']),
            r'\(1, 2, 3\) is in .*0,0,0 255,0,0',
        ),
        (
            dict(kinds=[JPG, ('.npy', 'npy'), ('.png', 'I;16')]),
            {},
            r'npy has 3, .*bands|bands.* has 1',
        ),
    ],
)
def test_what_is_wrong_with_a_strangers_folder_is_said(
    offline, settings, options, message, tmp_path
):
    folder = strangers_folder(tmp_path / 'data', **dict(dict(kinds=[JPG]), **settings))
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
        quiet=True,
        **OFFLINE,
    ).finish()
    for method, kind in (('supervised', 'EncoderDecoder'), ('mean_teacher', 'mmdmt.MeanTeacher')):
        assert (run / method / 'iter_2.pth').is_file()
        assert Config.fromfile(run / method / 'config.py').model.type == kind
    assert 'images: 5 labeled, 4 unlabeled, 1 val; classes: background, polyp' in text
    assert f'are in {run}/config.py' in text and 'then mean_teacher' in text
    shown = text[text.index('On the validation images (1, too few to tell') :]
    assert 'supervised' in shown and 'mean_teacher' in shown and 'predict.py' in shown


@pytest.fixture(scope='module')
def train_tool():
    return runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'train.py'))


def test_the_table_reads_what_runs_have_written(train_tool, tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/final.json').write_text('{"metrics": {"mIoU": 51.234, "student/mIoU": 1}}')
    runs = {'supervised': str(tmp_path / 'a'), 'cps': str(tmp_path / 'b')}
    text = train_tool['summary'](runs, 100)
    assert text.startswith('On the validation images (100):\n')
    assert 'supervised       mIoU 51.23' in text and 'cps              no final.json' in text
    assert text.endswith(f'tools/predict.py {tmp_path / "a"} FOLDER_OF_IMAGES --out predictions')


def test_the_report_is_written_where_its_packages_are(train_tool, monkeypatch):
    asked = []
    module = ModuleType('mmdmt.evaluation.report')
    module.write_report = lambda runs, out: asked.append((runs, out))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    runs = {'supervised': 'run/supervised', 'cps': 'run/cps'}
    assert train_tool['write_report_of'](runs, 'run/report.html') == 'Report: run/report.html'
    assert asked == [(['supervised=run/supervised', 'cps=run/cps'], 'run/report.html')]
    monkeypatch.setitem(sys.modules, module.__name__, None)
    assert train_tool['write_report_of'](runs, 'x.html').startswith('No report')
