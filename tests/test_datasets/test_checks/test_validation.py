import json
import os
import pickle

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from PIL import Image
from tiny_data_tree import LABELED, NUM_CLASSES, UNLABELED, DataTree

from mmdmt.datasets.checks import file_facts
from mmdmt.datasets.checks.problems import (
    FIXES,
    DatasetError,
    Problem,
    format_problems,
    raise_on_problems,
)
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.registry import DATASETS


@pytest.fixture
def tree(tmp_path):
    init_default_scope('mmseg')
    return DataTree(tmp_path)


def check(tree, train=None, val=True, **options):
    return check_dataset(
        train or tree.train_config(),
        tree.config('val') if val else None,
        progress=False,
        **options,
    )


def build(config):
    config = {key: value for key, value in config.items() if key != 'type'}
    return BaseSegDataset(**config)


def only(problems):
    assert len(problems) == 1, problems
    return problems[0]


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_sound_data_has_no_problems(tree):
    assert check(tree) == []
    assert check(tree, full=False) == []


# --- One test for each kind of problem ---------------------------------------------------------


def test_missing_image(tree):
    tree.image('b').unlink()
    problem = only(check(tree))
    assert problem.kind == 'missing image'
    assert (problem.file, problem.line) == (str(tree.list('labeled')), 2)
    assert str(tree.image('b')) in problem.found
    assert only(check(tree, full=False)) == problem


def test_missing_unlabeled_image(tree):
    tree.image('e').unlink()
    assert only(check(tree)).where == f'{tree.list("unlabeled")}:2'


def test_missing_mask(tree):
    tree.mask('sub/c').unlink()
    problem = only(check(tree))
    assert (problem.kind, problem.line) == ('missing mask', 3)
    assert str(tree.mask('sub/c')) in problem.found


def test_unlabeled_images_need_no_mask(tree):
    for name in UNLABELED:
        tree.mask(name).unlink()
    assert check(tree) == []


def test_truncated_image(tree):
    truncate(tree.image('d'))
    problem = only(check(tree))
    assert (problem.kind, problem.line) == ('corrupt image', 1)
    assert 'truncated' in problem.found
    assert check(tree, full=False) == []  # the header is sound


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_image_that_is_none(tree, content):
    tree.image('a').write_bytes(content)
    assert only(check(tree)).kind == 'corrupt image'
    assert only(check(tree, full=False)).kind == 'corrupt image'


def test_truncated_mask(tree):
    truncate(tree.mask('a'))
    problem = only(check(tree))
    assert (problem.kind, problem.line) == ('corrupt mask', 1)


def test_mask_of_another_size(tree):
    tree.write_mask('a', np.zeros((48, 40), np.uint8))
    problem = only(check(tree))
    assert problem.kind == 'mask size'
    assert 'is 40x48, its image 48x40' in problem.found
    assert only(check(tree, full=False)) == problem


def test_mask_fits_the_image_as_exif_turns_it(tree):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: the loader turns it to 48x40 -> 40x48
    tree.write_image('a', np.zeros((40, 48, 3), np.uint8), exif=exif)
    assert only(check(tree)).kind == 'mask size'
    tree.write_mask('a', np.zeros((48, 40), np.uint8))
    assert check(tree) == []


def test_label_ids_outside_the_classes(tree):
    tree.write_mask('b', np.full((40, 48), NUM_CLASSES, np.uint8))
    problem = only(check(tree))
    assert (problem.kind, problem.line) == ('label id', 2)
    assert 'has ids 3: classes are 0 to 2, ignored 255' in problem.found


def test_ignored_pixels_are_no_problem_but_only_with_that_id(tree):
    tree.write_mask('b', np.full((40, 48), 255, np.uint8))
    assert check(tree) == []
    problem = only(check(tree, tree.train_config(ignore_index=254)))
    assert problem.kind == 'label id'


def test_16_bit_ids_are_not_wrapped(tree):
    tree.write_mask('b', np.full((40, 48), 257, np.uint16))
    assert 'has ids 257' in only(check(tree)).found


def test_rgb_mask(tree):
    tree.write_mask('a', np.zeros((40, 48, 3), np.uint8))
    problem = only(check(tree))
    assert problem.kind == 'mask mode'
    assert 'mode RGB' in problem.found
    assert only(check(tree, full=False)).found == problem.found


def test_palette_masks_are_read_as_ids(tree):
    mask = Image.fromarray(np.full((40, 48), 2, np.uint8)).convert('L')
    mask.putpalette([200, 10, 10] * 256)
    mask.save(tree.mask('a'))
    assert Image.open(tree.mask('a')).mode == 'P'
    assert check(tree) == []


def test_id_in_both_lists(tree):
    tree.write_list('unlabeled', [*UNLABELED, 'b'])
    problem = only(check(tree))
    assert problem.kind == 'in both lists'
    assert problem.where == f'{tree.list("unlabeled")}:3'
    assert f'{tree.list("labeled")}:2' in problem.found


def test_same_id_in_another_folder_is_another_image(tree):
    tree.write_list('extra', ['a'])
    (tree.root / 'more').mkdir()
    tree.image('a').rename(tree.root / 'more' / 'a.jpg')
    tree.write_image('a', np.zeros((40, 48, 3), np.uint8))
    extra = tree.config('unlabeled', ann_file='extra.txt', data_prefix=dict(img_path='more'))
    assert check(tree, dict(datasets=[tree.train_config(), extra])) == []


def test_linked_folder_is_the_same_folder(tree):
    (tree.root / 'link').symlink_to(tree.root / 'img', target_is_directory=True)
    tree.write_list('extra', ['a'])
    extra = tree.config('unlabeled', ann_file='extra.txt', data_prefix=dict(img_path='link'))
    problem = only(check(tree, dict(datasets=[tree.train_config(), extra])))
    assert problem.kind == 'in both lists'


def test_unlabeled_folder_may_hold_labeled_images(tree):
    folder = tree.config('unlabeled', ann_file='')
    assert check(tree, dict(datasets=[tree.config('labeled'), folder])) == []


def test_id_twice(tree):
    tree.write_list('labeled', ['a', 'b', 'a'])
    problem = only(check(tree))
    assert problem.kind == 'duplicate id'
    assert problem.line == 3
    assert "'a' is on line 1 already" in problem.found


def test_labeled_image_in_validation(tree):
    tree.write_list('labeled', [*LABELED, 'v'])
    problem = only(check(tree))
    assert problem.kind == 'validation overlap'
    assert problem.where == f'{tree.list("labeled")}:4'
    assert f'{tree.list("val")}:1' in problem.found


def test_validation_files_are_checked_too(tree):
    truncate(tree.mask('v'))
    assert only(check(tree)).where == f'{tree.list("val")}:1'
    assert check(tree, val=False) == []


@pytest.mark.parametrize('content', ['', '\n \n'])
@pytest.mark.parametrize('kind', ['labeled', 'unlabeled', 'val'])
def test_empty_list(tree, kind, content):
    tree.list(kind).write_text(content)
    problem = only(check(tree))
    assert (problem.kind, problem.file) == ('empty list', str(tree.list(kind)))


@pytest.mark.parametrize('kind', ['labeled', 'unlabeled', 'val'])
def test_missing_list(tree, kind):
    tree.list(kind).unlink()
    problem = only(check(tree))
    assert (problem.kind, problem.file) == ('missing list', str(tree.list(kind)))
    assert 'does not exist' in problem.found


def test_folder_for_a_list(tree):
    """mmseg would train on every image below the image folder."""
    problem = only(check(tree, tree.train_config(ann_file='img')))
    assert problem.kind == 'missing list'
    assert 'is a folder, not a list' in problem.found


def test_missing_folders_are_one_problem_each(tree):
    config = tree.train_config(data_prefix=dict(img_path='images', seg_map_path='masks'))
    problems = check(tree, config)
    assert [problem.kind for problem in problems] == ['missing folder'] * 2
    assert problems[0].file == str(tree.root / 'images')


def test_folder_without_images(tree):
    (tree.root / 'none').mkdir()
    config = tree.config('labeled', ann_file='', data_prefix=dict(img_path='none'))
    problem = only(check(tree, config))
    assert (problem.kind, problem.file) == ('empty list', str(tree.root / 'none'))


@pytest.mark.parametrize(
    ('content', 'line', 'found'),
    [
        (b'a\n\nb\nsub/c\n', 2, 'blank line'),
        (b'a\nb.jpg\nsub/c\n', 2, "'b.jpg' carries the suffix '.jpg'"),
        (b'\xef\xbb\xbfa\nb\nsub/c\n', 1, 'byte order mark'),
        (b'a\nb\tann/b.png\nsub/c\n', 2, 'more than one column'),
        (b'a\n\xff\xfe\nsub/c\n', 2, 'not UTF-8'),
    ],
)
def test_odd_lines(tree, content, line, found):
    tree.list('labeled').write_bytes(content)
    problem = only(check(tree))  # and no missing image for the same line
    assert (problem.kind, problem.line) == ('odd line', line)
    assert found in problem.found


def test_spaces_around_ids_and_windows_lines_are_accepted(tree):
    tree.list('labeled').write_bytes(b'a \r\n b\r\nsub/c')
    assert check(tree) == []


def test_data_set_that_cannot_be_built(tree):
    class Refusing(BaseSegDataset):
        def __init__(self, **kwargs):
            raise AssertionError('there is a file missing')

    DATASETS.register_module(module=Refusing, force=True)
    problem = only(check(tree, tree.config('labeled', type='mmdmt.Refusing')))
    assert problem.kind == 'unreadable dataset'
    assert 'there is a file missing' in problem.found


def test_all_problems_at_once(tree):
    tree.list('labeled').write_text('a\n\nb\na\nsub/c\nnowhere\nd\nv\n')
    truncate(tree.image('b'))
    tree.write_mask('sub/c', np.full((4, 4), 9, np.uint8))
    found = [(problem.kind, problem.line) for problem in check(tree)]
    assert sorted(found) == [
        ('corrupt image', 3),
        ('duplicate id', 4),
        ('in both lists', 1),  # of the unlabeled list
        ('label id', 5),
        ('mask size', 5),
        ('missing image', 6),
        ('missing mask', 6),
        ('odd line', 2),
        ('validation overlap', 8),
    ]


# --- Label rules -------------------------------------------------------------------------------


def test_reduce_zero_label(tree):
    for name, label in zip(LABELED, (0, NUM_CLASSES, 255)):
        tree.write_mask(name, np.full((40, 48), label, np.uint8))
    assert check(tree, tree.train_config(reduce_zero_label=True)) == []
    tree.write_mask('a', np.full((40, 48), NUM_CLASSES + 1, np.uint8))
    problem = only(check(tree, tree.train_config(reduce_zero_label=True)))
    assert 'has ids 4: classes are 0 to 2 after reduce_zero_label' in problem.found


def test_label_map(tree):
    class Mapped(BaseSegDataset):
        METAINFO = dict(classes=['x', 'y', 'z', 'u', 'v'], palette=[[i] * 3 for i in range(5)])

    dataset = build(tree.config('labeled'))
    mapped = Mapped(
        **{k: v for k, v in tree.config('labeled').items() if k not in ('type', 'metainfo')},
        metainfo=dict(classes=['z', 'x']),
    )
    tree.write_mask('a', np.full((40, 48), 4, np.uint8))
    assert only(check(tree, dataset)).kind == 'label id'
    assert check(tree, mapped) == []
    tree.write_mask('a', np.full((40, 48), 5, np.uint8))
    assert only(check(tree, mapped)).kind == 'label id'


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_label_rules_agree_with_the_loader(tree, reduce_zero_label):
    from mmseg.datasets.transforms import LoadAnnotations

    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tree.write_mask('a', ramp)
    label_map = {0: 2, 1: 255, 2: 0}
    info = dict(
        seg_map_path=str(tree.mask('a')),
        reduce_zero_label=reduce_zero_label,
        label_map=label_map,
        seg_fields=[],
    )
    loaded = LoadAnnotations()(info)['gt_seg_map']
    rules = file_facts.LabelRules(3, 255, reduce_zero_label, label_map)
    assert [rules.to_class(raw) for raw in range(256)] == loaded.ravel().tolist()


# --- What can be checked -----------------------------------------------------------------------


@pytest.mark.parametrize('built', [False, True])
def test_built_and_configured_data_sets_give_the_same_problems(tree, built):
    tree.list('labeled').write_text('a\nb\nb\n')
    truncate(tree.image('d'))
    config = tree.train_config()
    train = config
    if built:
        train = ConcatDataset(
            [build(part) for part in config['datasets']], ignore_keys=['reduce_zero_label']
        )
    assert [problem.kind for problem in check(tree, train)] == ['duplicate id', 'corrupt image']


def test_wrappers_are_looked_into(tree):
    truncate(tree.image('a'))
    config = tree.config('labeled')
    nested = dict(
        type='ConcatDataset',
        datasets=[
            dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=config)])
        ],
    )
    assert only(check(tree, nested)).kind == 'corrupt image'
    assert only(check(tree, RepeatDataset(build(config), times=3))).kind == 'corrupt image'


def test_own_data_sets_are_checked(tree):
    def config(**settings):
        unlabeled = dict(
            type='mmdmt.UnlabeledDataset',
            data_root=str(tree.root),
            ann_file='unlabeled.txt',
            data_prefix=dict(img_path='img'),
        )
        sources = [tree.config('labeled'), dict(unlabeled, **settings)]
        return dict(type='mmdmt.SemiDataset', datasets=sources)

    assert check(tree, config()) == []
    tree.list('unlabeled').write_text('d\n\nd\ne\nnowhere\n')
    truncate(tree.image('e'))
    found = [(problem.kind, problem.line) for problem in check(tree, config())]
    assert found == [
        ('odd line', 2),
        ('duplicate id', 3),
        ('corrupt image', 4),
        ('missing image', 5),
    ]
    assert [p.kind for p in check(tree, config(ann_file='no.txt'))] == ['missing list']
    several = check(tree, config(img_suffix=('.png', '.jpg'), ann_file='labeled.txt'))
    assert [problem.kind for problem in several] == ['in both lists'] * len(LABELED)


def test_checking_leaves_the_config_alone(tree):
    config = tree.train_config()
    before = json.dumps(config)
    check(tree, config)
    assert json.dumps(config) == before


def test_only_samples_in_use_are_checked(tree):
    truncate(tree.image('sub/c'))
    assert check(tree, tree.train_config(indices=2)) == []


def test_object_stores_are_left_out(tree):
    config = tree.train_config()
    config['datasets'][1].update(ann_file='s3://bucket/list.txt')
    assert check(tree, config) == []


# --- Cache -------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """Paths that were decoded."""
    paths = []
    for name in ('image_facts', 'mask_facts'):
        read = getattr(file_facts, name)

        def spy(path, decode=True, read=read):
            paths.append(path)
            return read(path, decode)

        monkeypatch.setattr(file_facts, name, spy)
    return paths


def test_sound_files_are_decoded_once(tree, decoded):
    cache = tree.root / 'cache.json'
    assert check(tree, cache_file=cache) == []
    assert len(decoded) == 10  # 6 images, 4 masks
    decoded.clear()
    assert check(tree, cache_file=cache) == []
    assert decoded == []


def test_changed_and_broken_files_are_decoded_again(tree, decoded):
    cache = tree.root / 'cache.json'
    truncate(tree.image('a'))
    assert only(check(tree, cache_file=cache)).kind == 'corrupt image'
    decoded.clear()
    tree.write_mask('b', np.zeros((40, 48), np.uint8))
    os.utime(tree.mask('b'), ns=(1, 1))
    assert only(check(tree, cache_file=cache)).kind == 'corrupt image'
    assert sorted(decoded) == sorted([str(tree.image('a')), str(tree.mask('b'))])


def test_cached_masks_are_judged_by_the_classes_of_today(tree, decoded):
    cache = tree.root / 'cache.json'
    assert check(tree, cache_file=cache) == []
    decoded.clear()
    two = dict(metainfo=dict(classes=['x', 'y']))
    problems = check(tree, tree.train_config(**two), cache_file=cache)
    assert [problem.kind for problem in problems] == ['label id'] * len(LABELED)
    assert decoded == []


@pytest.mark.parametrize('content', ['{"version": 1, "im', '[]', '{"version": 0}'])
def test_broken_cache_is_replaced(tree, content):
    cache = tree.root / 'cache.json'
    cache.write_text(content)
    assert check(tree, cache_file=cache) == []
    assert json.loads(cache.read_text())['image']


def test_interrupted_check_keeps_what_it_did(tree, monkeypatch):
    cache = tree.root / 'cache.json'
    read = file_facts.image_facts

    def interrupted(path):
        if path.endswith('e.jpg'):
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(file_facts, 'image_facts', interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(tree, cache_file=cache, workers=1)
    assert str(tree.image('a')) in json.loads(cache.read_text())['image']


# --- The message -------------------------------------------------------------------------------


def make_problems(count):
    return [Problem('missing image', 'list.txt', line, f'{line}.jpg') for line in range(count)]


def test_every_kind_has_a_fix():
    assert all(Problem(kind, 'f', None, 'x').fix for kind in FIXES)


def test_table_shows_everything():
    text = format_problems([*make_problems(2), Problem('mask mode', 'm.png', None, 'mode RGB')])
    assert text.startswith('3 problems in the data (missing image: 2, mask mode: 1)\n')
    assert 'missing image  list.txt:1  1.jpg\n' in text
    assert 'mask mode      m.png       mode RGB\n' in text
    assert text.count(FIXES['missing image']) == 1
    assert 'more' not in text


def test_table_can_be_cut():
    text = format_problems(make_problems(12), limit=5)
    assert 'list.txt:4 ' in text
    assert 'list.txt:5 ' not in text
    assert '... and 7 more' in text
    assert text.startswith('12 problems')


def test_raise_on_problems():
    raise_on_problems([])
    problems = make_problems(40)
    with pytest.raises(DatasetError, match=r'\.\.\. and 10 more') as caught:
        raise_on_problems(problems)
    assert str(caught.value) == format_problems(problems, limit=30)
    assert caught.value.problems == problems


def test_error_crosses_processes():
    error = pickle.loads(pickle.dumps(DatasetError('text', make_problems(1))))
    assert str(error) == 'text'
    assert error.problems == make_problems(1)


def test_a_cache_that_cannot_be_written_costs_a_warning(tree, monkeypatch):
    warnings = []
    monkeypatch.setattr(file_facts, 'print_log', lambda message, *args: warnings.append(message))
    (tree.root / 'disk').write_text('a file where a folder should be')
    assert check(tree, cache_file=tree.root / 'disk' / 'cache.json') == []
    assert f'cannot write into {tree.root / "disk"}' in warnings[0]
    assert '`default_hooks.dataset_check.cache`' in warnings[0]
