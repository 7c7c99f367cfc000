import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny_models import tiny_segmentor

from mmdmt.engine.hooks.iter_seed_hook import seed_everything_at
from mmdmt.models.forward import Targets
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.registry import MODELS

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'browse_dataset.py'
CLASSES = ('left', 'right', 'top', 'bottom')
PALETTE = [[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]]
NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
SIZE = (32, 40)


def load_tool():
    spec = importlib.util.spec_from_file_location('browse_dataset', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browse = load_tool()


@pytest.fixture(autouse=True)
def keep_random_state():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def data_root(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ('img', 'ann'):
        (tmp_path / folder).mkdir()
    for index in range(6):
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / 'img' / f'{index}.png')
        if index < 3:
            label = rng.integers(0, 4, (4, 5), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(label).save(tmp_path / 'ann' / f'{index}.png')
    (tmp_path / 'labeled.txt').write_text('0\n1\n2\n')
    (tmp_path / 'unlabeled.txt').write_text('3\n4\n5\n')
    return tmp_path


def pipeline(labeled):
    load = [dict(type='LoadAnnotations')] if labeled else []
    return [
        dict(type='LoadImageFromFile', imdecode_backend='pillow'),
        *load,
        dict(type='RandomCrop', crop_size=(24, 24), cat_max_ratio=1.0),
        dict(type='RandomFlip', prob=0.5),
        dict(type='mmdmt.PackSemiInputs'),
    ]


def base_config(root, num_sources=2):
    common = dict(
        data_root=str(root), img_suffix='.png', metainfo=dict(classes=CLASSES, palette=PALETTE)
    )
    labeled = dict(
        type='BaseSegDataset',
        ann_file='labeled.txt',
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        pipeline=pipeline(True),
        **common,
    )
    unlabeled = dict(
        type='mmdmt.UnlabeledDataset',
        ann_file='unlabeled.txt',
        data_prefix=dict(img_path='img'),
        pipeline=pipeline(False),
        **common,
    )
    sampler = dict(type='mmdmt.MultiSourceSampler', batch_size=4, source_ratio=[1] * num_sources)
    return dict(
        default_scope='mmseg',
        custom_imports=dict(imports=['mmdmt'], allow_failed_imports=False),
        randomness=dict(seed=3),
        train_dataloader=dict(
            batch_size=4,
            num_workers=2,
            persistent_workers=True,
            sampler=sampler,
            dataset=dict(type='mmdmt.SemiDataset', datasets=[labeled, unlabeled][:num_sources]),
        ),
        test_dataloader=dict(dataset=dict(pipeline=pipeline(True))),
        model=dict(
            tiny_segmentor(),
            data_preprocessor=dict(type='SegDataPreProcessor', size=(24, 32), **NORM),
        ),
    )


def online_config(root, mix='CutMix'):
    cfg = base_config(root)
    cfg['model'] = dict(
        type='mmdmt.MeanTeacher',
        segmentor=cfg['model'],
        strong=dict(type='mmdmt.StrongAugment'),
        mix=dict(type=f'mmdmt.{mix}', prob=1.0) if mix else None,
    )
    return cfg


def mutual_config(root):
    cfg = base_config(root)
    cfg['mutual'] = dict(
        members=[dict(name='a'), dict(name='b')], ratios=[0.5, 1.0], round=dict(batch_size=4)
    )
    cfg.update(
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=[],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=4),
        work_dir=str(root / 'run'),
    )
    return cfg


def write_store(folder, complete=True):
    store = PseudoLabelStore(str(folder))
    store.begin(dict(ratio=0.5, num_classes=4, pixel_stride=1, bins=None, checkpoint={}))
    for name in ('3', '4', '5'):
        store.put(name, np.full(SIZE, 2, np.uint8), np.full(SIZE, 0.75, np.float32))
    if complete:
        store.finish(['3', '4', '5'], np.zeros(4, np.float32))


def run(cfg, root, *arguments):
    path = root / 'config.py'
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.items()))
    return browse.main([str(path), '--out-dir', str(root / 'out'), *arguments])


@pytest.fixture
def columns(monkeypatch):
    """Column titles and cells of all sections that are drawn, by title, and row titles."""
    drawn = []
    original = browse.tile_images

    def spy(rows, column_titles, row_titles, cell_size):
        cells = dict(zip(column_titles, zip(*rows)))
        drawn.append((cells, row_titles))
        return original(rows, column_titles, row_titles, cell_size)

    monkeypatch.setattr(browse, 'tile_images', spy)
    return drawn


def test_online_config(data_root, columns):
    paths = run(online_config(data_root), data_root, '--number', '2', '--not-show')
    assert [Path(path).name for path in paths] == ['config_000.png', 'config_001.png']
    for path in paths:
        assert np.asarray(Image.open(path)).shape[2] == 3
    # The unlabeled section is drawn first, because training draws its random numbers first.
    unlabeled, names = columns[0]
    assert list(unlabeled) == ['weak', 'strong', 'CutMix']
    assert all(re.match(r'unlabeled: [345]\.png', name) for name in names)
    assert len(unlabeled['weak']) == 2
    assert not np.array_equal(unlabeled['weak'][0], unlabeled['strong'][0])
    labeled, names = columns[1]
    assert all(re.match(r'labeled: [012]\.png', name) for name in names)
    assert list(labeled) == [
        'image',
        'label',
        'CutMix (true labels)',
        'CutMix (true labels): label',
    ]


def test_shows_the_pixels_of_the_file(data_root, columns):
    cfg = online_config(data_root, mix=None)
    for source in cfg['train_dataloader']['dataset']['datasets']:
        source['pipeline'] = [t for t in source['pipeline'] if 'Random' not in t['type']]
    cfg['model']['segmentor']['data_preprocessor']['size'] = (32, 48)
    run(cfg, data_root, '--number', '1')
    for cells, names in columns:
        image = cells.get('weak', cells.get('image'))[0]
        file = data_root / 'img' / names[0].split(': ')[1]
        assert np.array_equal(image[:32, :40], np.asarray(Image.open(file)))
    label = np.asarray(Image.open(data_root / 'ann' / columns[1][1][0].split(': ')[1]))
    expected = browse.overlay_label(image[:, :40], label, PALETTE)
    assert np.array_equal(columns[1][0]['label'][0][:, :40], expected)
    assert np.array_equal(columns[1][0]['label'][0][:, 40:], image[:, 40:]), 'padding: no label'


def test_sheet_is_the_batch_of_that_iteration(data_root, columns):
    cfg = online_config(data_root)
    run(cfg, data_root, '--number', '2')
    shown = columns[2][0]  # unlabeled section of the second sheet
    cfg = Config(cfg)
    _, loader = browse.batches(cfg, seed=3)
    batch = [next(loader) for _ in range(2)][1]
    seed_everything_at(3, 0, 1)
    inputs = browse.build_preprocessor(cfg)(batch, True)['inputs']
    strong = MODELS.build(cfg.model.strong)(inputs['unsup_rgb'], inputs['unsup_valid'])
    valid = inputs['unsup_valid']
    mixed, _ = MODELS.build(cfg.model.mix)(strong, Targets(valid.long(), valid.float(), valid))
    for title, tensor in (('strong', strong), ('CutMix', mixed)):
        assert np.array_equal(shown[title][0], browse.to_uint8_image(tensor[0]))


def test_seed_changes_what_is_shown(data_root, columns):
    for seed in ('3', '4'):
        run(online_config(data_root), data_root, '--number', '1', '--seed', seed)
    assert not np.array_equal(columns[0][0]['strong'][0], columns[2][0]['strong'][0])


def test_several_views_of_a_method_have_a_column_each(data_root, columns):
    model = MODELS.build(Config(online_config(data_root)).model)
    model.second = MODELS.build(dict(type='mmdmt.StrongAugment'))
    model.other = MODELS.build(dict(type='mmdmt.ClassMix'))
    assert list(browse.find_views(model)) == ['strong', 'strong 2', 'CutMix', 'ClassMix']


def test_checkpoint_labels_the_unlabeled_images(data_root, columns):
    cfg = online_config(data_root, mix='ClassMix')
    torch.manual_seed(0)
    model = MODELS.build(Config(cfg).model)
    # Of the teacher make class 2 certain, of the student class 1.
    for network, wanted in ((model.teacher, 2), (model.student, 1)):
        head = network.decode_head.conv_seg
        torch.nn.init.zeros_(head.weight)
        head.bias.data = 20.0 * torch.eye(4)[wanted]
    checkpoint = data_root / 'model.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    run(cfg, data_root, '--number', '1', '--checkpoint', str(checkpoint))
    unlabeled, labeled = columns[0][0], columns[1][0]
    assert list(labeled) == ['image', 'label']
    assert list(unlabeled)[2:] == [
        'prediction',
        'confidence',
        'ClassMix',
        'ClassMix: label',
        'ClassMix: confidence',
    ]
    valid = np.full((24, 24), 2)
    expected = browse.overlay_label(unlabeled['weak'][0][:, :24], valid, PALETTE)
    assert np.array_equal(unlabeled['prediction'][0][:, :24], expected)
    assert (unlabeled['confidence'][0][:, 24:] == 255).all(), 'padding has no confidence'
    assert not (unlabeled['confidence'][0][:, :24] == 255).all()


def test_mixes_can_be_asked_for(data_root, columns):
    run(online_config(data_root, mix=None), data_root, '--number', '1', '--mix', 'CutMix')
    assert 'CutMix' in columns[0][0] and 'CutMix (true labels)' in columns[1][0]
    run(online_config(data_root), data_root, '--number', '1', '--mix')
    assert list(columns[2][0]) == ['weak', 'strong']


def test_labeled_only_config_with_mmseg_preprocessor(data_root, columns):
    paths = run(base_config(data_root, num_sources=1), data_root, '--number', '1')
    assert len(paths) == len(columns) == 1
    cells, names = columns[0]
    assert list(cells) == ['image', 'label'] and len(names) == 4


def test_mutual_config_shows_the_latest_complete_store(data_root, columns, capsys):
    cfg = mutual_config(data_root)
    run(cfg, data_root, '--number', '1')
    assert 'stage_0_a' in capsys.readouterr().out
    assert len(columns) == 1 and list(columns[0][0]) == ['image', 'label']
    write_store(data_root / 'run' / 'stage_1_b' / 'pseudo_labels')
    write_store(data_root / 'run' / 'stage_2_a' / 'pseudo_labels', complete=False)
    run(cfg, data_root, '--number', '1')
    assert 'stage_1_b' in capsys.readouterr().out
    cells, names = columns[2]
    assert list(cells) == ['image', 'pseudo-label', 'confidence']
    assert names[0].startswith('pseudo-labeled: ')
    image, overlay = cells['image'][0], cells['pseudo-label'][0]
    assert np.array_equal(
        overlay[:, :24], browse.overlay_label(image[:, :24], np.full((24, 24), 2), PALETTE)
    )
    assert len(np.unique(cells['confidence'][0][:, :24].reshape(-1, 3), axis=0)) == 1
    assert list(columns[1][0]) == ['image', 'label']


def test_stage_that_is_not_there_is_refused(data_root):
    with pytest.raises(ValueError, match=r'--stage 2\.a.*--work-dir'):
        run(mutual_config(data_root), data_root, '--stage', '2.a')
    with pytest.raises(ValueError, match='no `mutual`'):
        run(online_config(data_root), data_root, '--stage', '1.a')


def test_config_without_a_preprocessor_is_refused(data_root):
    cfg = base_config(data_root)
    del cfg['model']['data_preprocessor']
    with pytest.raises(ValueError, match='data_preprocessor'):
        run(cfg, data_root)


def test_number_must_be_positive(data_root, capsys):
    with pytest.raises(SystemExit):
        run(base_config(data_root), data_root, '--number', '0')
    assert '--number' in capsys.readouterr().err


def test_cell_limits_the_size_of_the_sheet(data_root):
    large, small = (
        Image.open(run(base_config(data_root, 1), data_root, '--number', '1', *options)[0]).size
        for options in ((), ('--cell', '8'))
    )
    assert small[0] < large[0] and small[1] < large[1]
