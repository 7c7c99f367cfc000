import random

import pytest

from mmdmt.classification.class_splits import per_class_splits

LABELS = {f'{number:03}': number % 10 for number in range(400)}


def test_published_sizes():
    drawn = per_class_splits({f'{n:05}': n % 10 for n in range(50000)})
    assert len(drawn.val) == 200
    assert {key[0] for key in drawn.splits} == {40, 250, 1000, 4000}
    assert {key[1] for key in drawn.splits} == {1, 2, 3, 4, 5}
    assert all(len(one) + len(rest) == 49800 for one, rest in drawn.splits.values())


def test_every_class_has_its_share_and_nothing_overlaps():
    drawn = per_class_splits(LABELS, [1, 3], [1, 2], val_per_class=5)
    assert [sum(LABELS[n] == c for n in drawn.val) for c in range(10)] == [5] * 10
    for (count, _), (labeled, unlabeled) in drawn.splits.items():
        assert [sum(LABELS[n] == c for n in labeled) for c in range(10)] == [count // 10] * 10
        assert sorted([*labeled, *unlabeled, *drawn.val]) == sorted(LABELS)


def test_sets_of_a_seed_are_nested_and_seeds_differ():
    splits = per_class_splits(LABELS, [1, 3], [1, 2], val_per_class=5).splits
    for seed in (1, 2):
        assert set(splits[10, seed][0]) < set(splits[30, seed][0])
    assert set(splits[30, 1][0]) != set(splits[30, 2][0])


def test_the_draw_is_the_described_one():
    drawn = per_class_splits(LABELS, [2], [1, 3], val_per_class=5)
    by_class = [sorted(n for n in LABELS if LABELS[n] == c) for c in range(10)]

    def shuffled(seed):
        rng, out = random.Random(seed), [list(names) for names in by_class]
        for names in out:
            rng.shuffle(names)
        return out

    val = {name for names in shuffled(1) for name in names[-5:]}
    assert set(drawn.val) == val
    third = [[n for n in names if n not in val][:2] for names in shuffled(3)]
    assert drawn.splits[20, 3][0] == [name for names in third for name in names]
    again = per_class_splits(dict(reversed(list(LABELS.items()))), [2], [1, 3], val_per_class=5)
    assert again == drawn


@pytest.mark.parametrize('sizes, val', [([41], 0), ([36], 5), ([0], 5), ([], 5)])
def test_impossible_sizes_are_refused(sizes, val):
    with pytest.raises(ValueError, match='of each class'):
        per_class_splits(LABELS, sizes, [1], val_per_class=val)


def test_no_images():
    with pytest.raises(ValueError, match='no images'):
        per_class_splits({})
