import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdmt.datasets.splits import difference_maximized_subsets, nested_splits
from mmdmt.datasets.splits.draws import draw_splits
from mmdmt.datasets.splits.files import (
    SplitExistsError,
    describe_list,
    read_list,
    write_list,
    write_splits,
)

GOLDEN = json.loads((Path(__file__).parents[2] / 'data/golden/splits.json').read_text())

totals = st.integers(1, 200)
seeds = st.integers(0, 2**32)


def make_names(total):
    return [f'img_{i:05d}' for i in range(total)]


def draw_counts(names, counts, *args):
    return draw_splits(names, {count: count for count in counts}, *args)


def list_digest(names):
    return describe_list(names)['sha256']


def missing_classes(names, presence):
    return set().union(*presence.values()) - set().union(*(presence[name] for name in names))


def golden_splits(golden, names=None):
    names = names or [golden['name_format'] % i for i in range(golden['total'])]
    return nested_splits(names, golden['denominators'], seed=golden['seed'])


# --- The published procedure -------------------------------------------------------------------


@pytest.mark.parametrize('name', GOLDEN)
def test_nested_splits_are_the_published_ones(name):
    splits = golden_splits(GOLDEN[name])
    assert [f'{d}_{fold}' for d, fold in splits] == list(GOLDEN[name]['sets'])
    for (denominator, fold), (labeled, unlabeled) in splits.items():
        expected = GOLDEN[name]['sets'][f'{denominator}_{fold}']
        assert labeled[:5] == expected['first5']
        assert labeled[-1] == expected['last']
        assert len(labeled) == expected['n_labeled']
        assert len(unlabeled) == expected['n_unlabeled']
        assert list_digest(labeled) == expected['sha256']


@pytest.mark.parametrize('name', GOLDEN)
def test_difference_maximized_subsets_are_the_published_ones(name):
    rng = random.Random(GOLDEN[name]['seed'])
    for (denominator, fold), (labeled, _) in golden_splits(GOLDEN[name]).items():
        left, right = difference_maximized_subsets(labeled, rng=rng)
        expected = GOLDEN[name]['difference_maximized'][f'{denominator}_{fold}']
        assert (left[:3], right[:3]) == (expected['left_first'], expected['right_first'])
        assert (len(left), len(right)) == (expected['n_left'], expected['n_right'])
        assert list_digest(left) == expected['left_sha256']
        assert list_digest(right) == expected['right_sha256']


@pytest.mark.parametrize(
    ('total', 'denominator', 'labels'),
    [
        (10582, 2, 5291),
        (10582, 4, 2645),
        (10582, 8, 1322),
        (10582, 20, 530),  # 529 + 1
        (10582, 50, 211),
        (10582, 105.82, 100),
        (2975, 4, 743),
        (2975, 8, 371),
        (2975, 29.75, 100),
        (97, 1, 97),  # 97 % 8 == 1, and there is no 98th
    ],
)
def test_published_sizes(total, denominator, labels):
    names = make_names(total)
    labeled, unlabeled = nested_splits(names, [denominator], folds=1)[denominator, 0]
    assert len(labeled) == labels
    assert sorted(labeled + unlabeled) == names


def test_order_of_names_does_not_matter():
    names = make_names(97)
    shuffled = random.Random(0).sample(names, len(names))
    assert golden_splits(GOLDEN['tiny'], shuffled) == golden_splits(GOLDEN['tiny'])


def test_denominator_one_labels_the_whole_shuffled_list():
    splits = nested_splits(make_names(20), [1, 2], folds=2)
    for fold in range(2):
        labeled, unlabeled = splits[1, fold]
        assert unlabeled == []
        assert labeled != sorted(labeled)
        assert labeled[:10] == splits[2, fold][0]


def test_global_random_state_and_arguments_stay():
    names = make_names(30)[::-1]
    before, names_before = random.getstate(), list(names)
    nested_splits(names, [2])
    difference_maximized_subsets(names)
    draw_splits(names, {'few': 5})
    assert random.getstate() == before
    assert names == names_before


# --- Properties of every split -----------------------------------------------------------------


@given(totals, st.integers(1, 4), seeds, st.data())
def test_lists_are_nested_disjoint_and_complete(total, folds, seed, data):
    names = make_names(total)
    counts = data.draw(st.lists(st.integers(1, total), min_size=1, max_size=4, unique=True))
    splits = draw_counts(names, counts, folds, seed)
    assert set(splits) == {(count, fold) for count in counts for fold in range(folds)}
    for fold in range(folds):
        for count in counts:
            labeled, unlabeled = splits[count, fold]
            assert len(labeled) == count
            assert sorted(labeled + unlabeled) == names
        nested = [splits[count, fold][0] for count in sorted(counts)]
        assert all(large[: len(small)] == small for small, large in zip(nested, nested[1:]))


@given(st.integers(8, 300), seeds)
def test_equal_sizes_give_equal_lists_however_named(total, seed):
    names = make_names(total)
    by_denominator = nested_splits(names, [4], folds=2, seed=seed)
    size = len(by_denominator[4, 0][0])
    by_count = draw_counts(names, [size], 2, seed)
    assert [by_count[size, fold] for fold in (0, 1)] == [by_denominator[4, f] for f in (0, 1)]


def test_folds_and_seeds_differ():
    names = make_names(100)
    drawn = {tuple(labeled) for labeled, _ in draw_counts(names, [10], 3).values()}
    drawn.add(tuple(draw_counts(names, [10], 1, 1)[10, 0][0]))
    assert len(drawn) == 4


def test_more_folds_keep_the_first_ones():
    names = make_names(50)
    few, many = draw_counts(names, [10], 1), draw_counts(names, [10], 3)
    assert few[10, 0] == many[10, 0]


@given(st.integers(0, 200), st.floats(0, 1), seeds)
def test_difference_maximized_subsets_share_what_is_asked(total, common, seed):
    names = make_names(total)
    left, right = difference_maximized_subsets(names, common, seed)
    assert len(left) == len(right) == len(set(left)) == len(set(right))
    assert set(left) | set(right) <= set(names)
    assert abs(len(left) - (1 + common) / 2 * total) < 1 + 1e-9
    if total * common >= 2:
        assert set(left) | set(right) == set(names)
        assert abs(len(set(left) & set(right)) - common * total) < 2 + 1e-9


def test_difference_maximized_stream_advances():
    names, rng = make_names(40), random.Random(7777)
    first, second = (difference_maximized_subsets(names, 0.6, rng) for _ in range(2))
    assert first == difference_maximized_subsets(names)
    assert first != second


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: nested_splits([], [2]), 'no ids'),
        (lambda: nested_splits(['a', 'b', 'a'], [2]), "more than once, the first is 'a'"),
        (lambda: nested_splits(['a', 'b'], [4]), 'denominator 4 leaves no labeled image of 2'),
        (lambda: nested_splits(['a', 'b'], [0.5]), 'denominator 0.5 is below 1'),
        (lambda: nested_splits(['a', 'b'], [1], folds=0), 'folds=0'),
        (lambda: draw_counts(['a', 'b'], [3]), 'count 3 is not a whole number from 1 to 2'),
        (lambda: draw_counts(['a', 'b'], [0]), 'count 0'),
        (lambda: draw_counts(['a', 'b'], [1.5]), 'count 1.5'),
        (
            lambda: difference_maximized_subsets(['a'], common=1.2),
            r'`common` must be in \[0, 1\], got 1.2',
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- Class-aware drawing -----------------------------------------------------------------------

presences = st.lists(st.frozensets(st.integers(0, 9), max_size=4), min_size=1, max_size=40).map(
    lambda sets: dict(zip(make_names(len(sets)), sets))
)


@given(presences, seeds, st.data())
def test_class_aware_lists_are_complete_and_nested(presence, seed, data):
    counts = data.draw(st.lists(st.integers(1, len(presence)), min_size=1, max_size=3))
    splits = draw_counts(presence, counts, 2, seed, presence)
    for (count, _), (labeled, unlabeled) in splits.items():
        assert len(labeled) == count
        assert sorted(labeled + unlabeled) == sorted(presence)
    largest = splits[max(counts), 1][0]
    assert all(splits[count, 1][0] == largest[:count] for count in counts)


@given(presences, seeds)
def test_class_aware_shows_every_class_when_there_is_room(presence, seed):
    classes = {label for shown in presence.values() for label in shown}
    count = min(max(len(classes), 1), len(presence))  # one image a class always suffices
    labeled, _ = draw_counts(presence, [count], 1, seed, presence)[count, 0]
    assert not missing_classes(labeled, presence)


def test_class_aware_finds_the_rare_class_and_wastes_nothing():
    presence = {name: {0, 1} for name in make_names(99)}
    presence['rare'] = {2, 3, 0}
    for fold in range(5):
        labeled, _ = draw_counts(presence, [2], 5, 7777, presence)[2, fold]
        assert labeled[0] == 'rare'
        assert not missing_classes(labeled, presence)


def test_class_aware_small_sets_show_as_much_as_one_image_can():
    presence = {'few': {5}, 'many': {0, 1, 2}, 'more': {3, 4}}
    labeled, _ = draw_counts(presence, [1], 1, 7777, presence)[1, 0]
    assert labeled == ['many']


def test_class_aware_folds_differ():
    presence = {name: {i % 3} for i, name in enumerate(make_names(60))}
    splits = draw_counts(presence, [6], 3, 7777, presence)
    assert len({frozenset(labeled) for labeled, _ in splits.values()}) == 3


# --- Files -------------------------------------------------------------------------------------


def test_lists_survive_writing_and_reading(tmp_path):
    names = ['b', 'sub/a', 'ä ö']
    write_list(tmp_path / 'new' / 'list.txt', names)
    assert (tmp_path / 'new' / 'list.txt').read_bytes() == 'b\nsub/a\nä ö\n'.encode()
    assert read_list(tmp_path / 'new' / 'list.txt') == names


def test_read_list_forgives_blank_lines_not_doubles(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_bytes(b'\xef\xbb\xbfa\r\n\r\n b \r\n')
    assert read_list(path) == ['a', 'b']
    path.write_text('a\nb\na\n')
    with pytest.raises(ValueError, match=r"list\.txt holds 1 ids twice, the first is 'a'"):
        read_list(path)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.txt does not exist'):
        read_list(tmp_path / 'nowhere.txt')


def test_manifest_describes_how_lists_were_drawn_and_keeps_other_sets(tmp_path):
    write_splits(tmp_path, {'1_8/fold_0': {'labeled': ['b', 'a']}}, {'1_8/fold_0': {'seed': 3}})
    write_splits(tmp_path, {'count_1/fold_0': {'labeled': ['c']}}, {'count_1/fold_0': {}})
    sets = json.loads((tmp_path / 'manifest.json').read_text())['sets']
    assert set(sets) == {'1_8/fold_0', 'count_1/fold_0'}
    assert sets['1_8/fold_0']['seed'] == 3
    assert sets['1_8/fold_0']['lists'] == {
        'labeled': {'size': 2, 'sha256': list_digest(['b', 'a'])},
    }
    assert read_list(tmp_path / '1_8/fold_0/labeled.txt') == ['b', 'a']


def test_other_lists_are_not_overwritten_unless_forced(tmp_path):
    def write(ids, other, **options):
        sets = {'new': {'labeled': other}, 'old': {'labeled': ids}}
        return write_splits(tmp_path, sets, {'new': {}, 'old': {}}, **options)

    write(['a'], ['x'])
    write(['a'], ['x'])
    manifest = (tmp_path / 'manifest.json').read_text()
    with pytest.raises(SplitExistsError, match=r'1 lists exist.*old.labeled\.txt.*--force'):
        write(['b'], ['x'])
    assert read_list(tmp_path / 'old/labeled.txt') == ['a']
    assert (tmp_path / 'manifest.json').read_text() == manifest
    write(['b'], ['x'], force=True)
    assert read_list(tmp_path / 'old/labeled.txt') == ['b']


def test_foreign_manifest_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / 'manifest.json').write_text('[]')
    with pytest.raises(ValueError, match='is not a manifest of split lists'):
        write_splits(tmp_path, {'s': {'labeled': ['a']}}, {'s': {}})
    assert not (tmp_path / 's').exists()
