import random
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmdmt.datasets import SeededIndex, SemiDataset, UnlabeledDataset
from mmdmt.pseudo import DamagedMapError, PseudoLabelStore, StoreIncompleteError
from mmdmt.registry import MODELS

CLASSES = ('a', 'b', 'c')
GEOMETRY = [
    dict(type='RandomResize', scale=(40, 40), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(16, 16)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdmt.PackSemiInputs'),
]
LOAD = dict(type='LoadImageFromFile', imdecode_backend='pillow')
SUP = [LOAD, dict(type='LoadAnnotations'), *GEOMETRY]
UNSUP = [LOAD, *GEOMETRY]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ('img', 'more', 'ann'):
        (tmp_path / folder).mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'img' / f'{number:02}.jpg')
        Image.fromarray(pixels).save(tmp_path / 'more' / f'{number:02}.png')
        mask = rng.integers(0, 3, (30, 40), dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / 'ann' / f'{number:02}.png')
    (tmp_path / 'labeled.txt').write_text('\n'.join(f'{n:02}' for n in range(4)))
    (tmp_path / 'unlabeled.txt').write_text('\n'.join(f'{n:02}' for n in range(4, 12)))
    return tmp_path


def labeled(root, pipeline=SUP, **kwargs):
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        metainfo=dict(classes=CLASSES),
        ann_file='labeled.txt',
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        pipeline=pipeline,
        **kwargs,
    )


def unlabeled(root, pipeline=UNSUP, **kwargs):
    return dict(
        type='mmdmt.UnlabeledDataset',
        data_root=str(root),
        ann_file='unlabeled.txt',
        data_prefix=dict(img_path='img'),
        pipeline=pipeline,
        **kwargs,
    )


def png_folder(root):
    return dict(
        type='mmdmt.UnlabeledDataset',
        data_root=str(root),
        img_suffix='.png',
        data_prefix=dict(img_path='more'),
        pipeline=UNSUP,
    )


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def loader(root, workers=0, seed=0, datasets=None, source_ratio=(1, 2), **kwargs):
    return Runner.build_dataloader(
        dict(
            batch_size=6,
            num_workers=workers,
            sampler=dict(type='mmdmt.MultiSourceSampler', batch_size=6, source_ratio=source_ratio),
            dataset=dict(
                type='mmdmt.SemiDataset',
                datasets=datasets or [labeled(root), unlabeled(root)],
                **kwargs,
            ),
        ),
        seed=seed,
    )


def batches(data_loader, number):
    found = []
    iterator = iter(data_loader)
    try:
        for batch in islice(iterator, number):
            for image, sample in zip(batch['inputs'], batch['data_samples']):
                mask = sample.gt_sem_seg.data if 'gt_sem_seg' in sample else None
                found.append((sample.img_path, image, mask))
    finally:
        # Workers that end only with the traceback of an error are waited for, 5 seconds each.
        getattr(iterator, '_shutdown_workers', lambda: None)()
    return found


def same(left, right):
    return len(left) == len(right) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and (a[2] is b[2] or torch.equal(a[2], b[2]))
        for a, b in zip(left, right)
    )


def test_metainfo_is_that_of_the_labeled_source(root):
    dataset = SemiDataset([labeled(root), unlabeled(root)])
    assert dataset.metainfo['classes'] == CLASSES
    assert dataset.cumulative_sizes == [4, 12]
    assert 'seg_map_path' in dataset.get_data_info(3)
    assert 'seg_map_path' not in dataset.get_data_info(4)


def test_sources_with_other_classes_are_refused(root):
    other = dict(labeled(root), metainfo=dict(classes=('a', 'b', 'x')))
    with pytest.raises(ValueError, match=r'source 1 .*x.*all sources must agree'):
        SemiDataset([labeled(root), other])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [(dict(datasets=[]), 'is empty'), (dict(max_corrupt_share=1.5), '1.5')],
)
def test_wrong_settings_are_refused(root, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SemiDataset(**dict(dict(datasets=[labeled(root)]), **kwargs))


def test_several_folders_make_one_source(root):
    pool = dict(type='ConcatDataset', datasets=[unlabeled(root), png_folder(root)])
    dataset = SemiDataset([labeled(root), pool])
    assert dataset.cumulative_sizes == [4, 24]
    names = [sample.img_path for sample in (dataset[i]['data_samples'] for i in (5, 20))]
    assert names[0].endswith('img/05.jpg')
    assert names[1].endswith('more/08.png')


@pytest.mark.parametrize('serialize', [True, False])
def test_a_seeded_sample_depends_on_its_seed_alone(root, serialize):
    dataset = SemiDataset(
        [labeled(root, serialize_data=serialize), unlabeled(root, serialize_data=serialize)]
    )
    first = dataset[SeededIndex(7, 2**60)]['inputs']
    np.random.rand(5), random.random(), torch.rand(3)
    assert torch.equal(dataset[SeededIndex(7, 2**60)]['inputs'], first)
    others = [dataset[SeededIndex(7, 2**60 + n)]['inputs'] for n in range(1, 6)]
    assert not all(other.shape == first.shape and torch.equal(other, first) for other in others)


@pytest.mark.parametrize('draw', [random.random, np.random.rand, lambda: torch.rand(1).item()])
def test_every_generator_is_seeded_and_restored(root, draw):
    drawn = []

    def note(results):
        drawn.append(draw())
        return results

    dataset = SemiDataset([labeled(root, [note])])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    dataset[SeededIndex(0, 5)]
    assert draw() == expected
    dataset[SeededIndex(0, 5)]
    dataset[SeededIndex(0, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_plain_index_works_like_concat_dataset(root):
    parts = [labeled(root), labeled(root)]
    np.random.seed(3)
    expected = [ConcatDataset(parts)[i]['inputs'] for i in (1, 6, -1)]
    np.random.seed(3)
    found = [SemiDataset(parts)[i]['inputs'] for i in (1, 6, -1)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize('broken', [(), ('img/06.jpg', 'img/02.jpg')])
def test_batches_do_not_depend_on_the_number_of_workers(root, broken):
    for path in broken:
        truncate(root / path)
    expected = batches(loader(root, 0, max_corrupt_share=0.5), 4)
    assert same(batches(loader(root, 2, max_corrupt_share=0.5), 4), expected)
    assert not same(batches(loader(root, 0, seed=1, max_corrupt_share=0.5), 4), expected)


def test_the_preprocessor_takes_batches_as_the_sampler_orders_them(root):
    prepare = MODELS.build(dict(type='mmdmt.SemiDataPreprocessor', size=(16, 16)))
    for batch in islice(loader(root), 3):
        samples = prepare(batch, True)['data_samples']
        assert [len(samples[kind]) for kind in ('sup', 'unsup')] == [2, 4]
    alone = islice(loader(root, source_ratio=[1, 0]), 3)
    assert all(list(prepare(batch, True)['data_samples']) == ['sup'] for batch in alone)


def test_a_loader_that_skips_goes_on_as_if_it_had_drawn(root):
    expected = batches(loader(root), 4)[12:]
    resumed = loader(root, 2)
    resumed.sampler.skip(12)
    assert same(batches(resumed, 2), expected)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('path', ['img/02.jpg', 'img/06.jpg', 'more/03.png', 'ann/01.png'])
def test_a_truncated_image_is_replaced_by_one_of_its_source_and_counted(root, path, workers):
    truncate(root / path)
    second = png_folder(root) if path.startswith('more') else unlabeled(root)
    data = loader(root, workers, datasets=[labeled(root), second], max_corrupt_share=0.2)
    found = batches(data, 8)
    assert not any(file.endswith(path) for file, _, _ in found)
    assert [mask is not None for _, _, mask in found[:6]] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert data.dataset.corrupt_share == pytest.approx(1 / len(data.dataset))
    expected = path.replace('ann/01.png', 'img/01.jpg')
    assert [file.endswith(expected) for file in data.dataset.corrupt_files] == [True]


def test_a_mask_of_another_size_counts_as_corrupt(root):
    Image.new('L', (40, 31)).save(root / 'ann' / '02.png')
    dataset = SemiDataset(
        [labeled(root, [*SUP[:2], SUP[-1]])],
        max_corrupt_share=0.5,
    )
    assert not dataset[SeededIndex(2, 0)]['data_samples'].img_path.endswith('02.jpg')
    assert dataset.corrupt_share == 0.25


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_corrupt_images_are_an_error_that_names_them(root, workers):
    truncate(root / 'img/05.jpg')
    truncate(root / 'img/09.jpg')
    data = loader(root, workers, max_corrupt_share=0.1)
    with pytest.raises(RuntimeError, match=r'(?s)2 of 12 samples.*0\.1.*check_dataset') as caught:
        batches(data, 20)
    assert 'img/05.jpg' in str(caught.value)
    assert 'img/09.jpg' in str(caught.value)


def test_a_broken_pipeline_stops_at_once_and_shows_its_error(root):
    def fail(results):
        raise TypeError('wrong pipeline')

    with pytest.raises(RuntimeError, match='TypeError: wrong pipeline'):
        SemiDataset([labeled(root, [fail])])[SeededIndex(0, 0)]


def test_a_source_without_any_good_image_does_not_loop(root):
    for file in (root / 'img').iterdir():
        truncate(file)
    with pytest.raises(RuntimeError, match='in a row from source 1'):
        SemiDataset([labeled(root), unlabeled(root)], max_corrupt_share=1)[SeededIndex(5, 0)]


def test_running_out_of_memory_is_no_fault_of_the_image(root):
    def fail(results):
        raise MemoryError

    dataset = SemiDataset([labeled(root, [fail])])
    with pytest.raises(MemoryError):
        dataset[SeededIndex(0, 0)]
    assert dataset.corrupt_share == 0


def pseudo_labeled(root):
    """The unlabeled source with stored labels, and its store."""
    store = PseudoLabelStore(root / 'pseudo_labels')
    store.begin(dict(num_classes=3))
    names = [f'{n:02}' for n in range(4, 12)]
    for name in names:
        store.put(name, np.zeros((30, 40), np.uint8), np.full((30, 40), int(name) / 12))
    store.finish(names, np.zeros(3))
    load = dict(type='mmdmt.LoadPseudoLabels', store_dir=str(store.root))
    return unlabeled(root, [LOAD, load, *GEOMETRY]), store


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    ('harm', 'error'),
    [(truncate, DamagedMapError), (lambda path: path.unlink(), StoreIncompleteError)],
)
def test_a_faulty_pseudo_label_stops_training_by_name(root, workers, harm, error):
    """Another image in its place would hide what running again repairs."""
    source, store = pseudo_labeled(root)
    data = loader(root, workers, datasets=[labeled(root), source], max_corrupt_share=1)
    assert len(batches(data, 8)) == 48
    harm(store.root / 'maps' / '07.plc')
    with pytest.raises(error, match=r'(?s)07.*[Rr]un the stage that ma[dk]e.* again'):
        batches(data, 8)
    assert data.dataset.corrupt_share == 0
    assert store.missing(store.manifest['files']) == ['07']


def test_a_sample_refused_by_its_pipeline_is_replaced_reproducibly(root):
    # mmengine fetches another sample, drawn from NumPy's generator, if a pipeline returns None.
    def refuse_02(results):
        return None if results['img_path'].endswith('02.jpg') else results

    dataset = SemiDataset([labeled(root, [refuse_02])])
    found = [dataset[SeededIndex(2, 9)]['img_path'] for _ in range(5)]
    assert len(set(found)) == 1
    assert not found[0].endswith('02.jpg')


def test_built_data_sets_are_taken_too(root):
    config = labeled(root)
    config.pop('type')
    parts = [
        BaseSegDataset(**config),
        UnlabeledDataset(str(root / 'unlabeled.txt'), data_root=str(root)),
    ]
    assert SemiDataset(parts).datasets == parts
