import pickle
from collections import Counter
from itertools import islice
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

import mmdmt  # noqa: F401
from mmdmt.datasets import MultiSourceSampler, SeededIndex
from mmdmt.datasets.samplers import multi_source_sampler


class Sources:
    """Stands for a concatenated dataset."""

    def __init__(self, *sizes):
        self.cumulative_sizes = np.cumsum(sizes).tolist()

    def __len__(self):
        return self.cumulative_sizes[-1]

    def __getitem__(self, index):
        return int(index), index.seed


def make(sizes, batch_size=4, ratio=None, rank=0, world=1, seed=0, **kwargs):
    with mock.patch.object(multi_source_sampler, 'get_dist_info', return_value=(rank, world)):
        ratio = [1] * len(sizes) if ratio is None else ratio
        return MultiSourceSampler(Sources(*sizes), batch_size, ratio, seed=seed, **kwargs)


def take(sampler, number):
    return list(islice(sampler, number))


def source_of(sampler, index):
    return int(np.searchsorted(sampler.dataset.cumulative_sizes, index, side='right'))


sizes_strategy = st.lists(st.integers(1, 23), min_size=1, max_size=4)


@st.composite
def settings_strategy(draw):
    sizes = draw(sizes_strategy)
    ratio = draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)).filter(any))
    batch_size = sum(ratio) * draw(st.integers(1, 3))
    return dict(sizes=sizes, batch_size=batch_size, ratio=ratio, seed=draw(st.integers(0, 2**31)))


@settings(max_examples=40)
@given(settings_strategy(), st.integers(0, 40))
def test_every_batch_has_the_exact_ratio_in_the_order_of_the_sources(config, first):
    sampler = make(**config)
    sampler.skip(first * config['batch_size'])
    scale = config['batch_size'] // sum(config['ratio'])
    expected = [s for s, share in enumerate(config['ratio']) for _ in range(share * scale)]
    draws = iter(sampler)
    for _ in range(5):
        batch = list(islice(draws, config['batch_size']))
        assert [source_of(sampler, index) for index in batch] == expected


@settings(max_examples=30)
@given(settings_strategy(), st.integers(1, 4))
def test_each_source_is_a_permutation_per_pass_over_all_ranks(config, world):
    samplers = [make(**config, rank=rank, world=world) for rank in range(world)]
    for source, size in enumerate(config['sizes']):
        if not config['ratio'][source]:
            continue
        batches = samplers[0].batches_per_pass(source) * 2
        per_rank = [
            [i for i in take(s, batches * config['batch_size']) if source_of(s, i) == source]
            for s in samplers
        ]
        # Ranks take turns, so the joint stream is their interleaving.
        stream = [index for turn in zip(*per_rank) for index in turn]
        start = samplers[0]._starts[source]
        for first in (0, size):
            assert sorted(stream[first : first + size]) == list(range(start, start + size))


@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_ranks_are_disjoint_within_a_pass(world, per_batch, seed):
    size = world * per_batch * 4
    draws = [
        take(make([size], per_batch, rank=r, world=world, seed=seed), size // world)
        for r in range(world)
    ]
    assert len({int(index) for rank in draws for index in rank}) == size


@settings(max_examples=30)
@given(settings_strategy(), st.integers(0, 200), st.integers(0, 3), st.integers(1, 3))
def test_skip_equals_drawing(config, number, rank, more):
    drawn = make(**config, rank=rank, world=4)
    skipped = make(**config, rank=rank, world=4)
    skipped.skip(number)
    skipped.skip(more)
    expected = take(drawn, number + more + 30)[number + more :]
    found = take(skipped, 30)
    assert found == expected
    assert [index.seed for index in found] == [index.seed for index in expected]


def test_skip_takes_the_same_time_for_any_number():
    sampler = make([7, 11], seed=3)
    sampler.skip(10**15)
    assert len(take(sampler, 8)) == 8


def test_equal_sources_are_drawn_independently():
    sampler = make([50, 50], batch_size=2, seed=1)
    draws = take(sampler, 2 * 50 * 4)
    pairs = [(a, b - 50) for a, b in zip(draws[::2], draws[1::2])]
    same = sum(a == b for a, b in pairs)
    assert same < 20  # 4 expected of 200; all of them with one seed for both sources


def test_passes_and_seeds_give_different_orders():
    draws = take(make([40], batch_size=1), 80)
    assert draws[:40] != draws[40:]
    assert draws != take(make([40], batch_size=1, seed=1), 80)
    assert draws == take(make([40], batch_size=1), 80)


def test_the_order_is_frozen():
    # A run that goes on under other versions of Python and NumPy must see the same images.
    draws = take(make([5, 3], batch_size=4, ratio=[3, 1], seed=7), 8)
    assert [int(index) for index in draws] == FROZEN_INDICES
    assert [index.seed for index in draws[:2]] == FROZEN_SEEDS


FROZEN_INDICES = [4, 0, 1, 6, 3, 2, 3, 7]
FROZEN_SEEDS = [6635463128224577688, 17357714451022602486]


@settings(max_examples=5)
@given(st.integers(0, 2**63), st.integers(1, 3))
def test_seeds_of_draws_are_distinct_over_ranks_and_draws(seed, batch_size):
    draws = [
        index
        for rank in range(4)
        for index in take(make([3], batch_size, rank=rank, world=4, seed=seed), 100)
    ]
    assert max(Counter(index.seed for index in draws).values()) == 1
    assert all(0 <= index.seed < 2**64 for index in draws)


def test_iterating_again_starts_at_the_skipped_position():
    sampler = make([9, 5])
    sampler.skip(3)
    assert take(sampler, 10) == take(sampler, 10)


@pytest.mark.parametrize(
    ('batch_size', 'ratio', 'expected'),
    [
        (8, [1, 1], [4, 4]),
        (8, [1, 7], [1, 7]),
        (7, [1, 1], [4, 3]),
        (5, [0.5, 0.25, 0.25], [3, 1, 1]),
        (4, [3], [4]),
        (10, [1, 1, 1], [4, 3, 3]),
        (4, [1, 0], [4, 0]),
        (5, [0, 1, 1], [0, 3, 2]),
    ],
)
def test_split_of_the_batch(batch_size, ratio, expected):
    assert make([9] * len(ratio), batch_size, ratio).items_per_batch == expected


def test_a_source_left_out_of_the_batch_is_refused():
    with pytest.raises(ValueError, match=r'batch_size=2.*source_ratio=\[4, 1\].*source 1.*larger'):
        make([10, 10], batch_size=2, ratio=[4, 1])


def test_a_source_with_the_ratio_0_is_not_drawn():
    """Training on labeled images alone: the same stream as without the other source."""
    both = make([7, 5], batch_size=2, ratio=[1, 0], rank=1, world=2)
    alone = make([7], batch_size=2, ratio=[1], rank=1, world=2)
    for sampler in (both, alone):
        sampler.skip(9)
    assert take(both, 20) == take(alone, 20)
    assert (len(both), both.batches_per_pass(0)) == (12, 2)
    with pytest.raises(ValueError, match=r'source 1 is not drawn.*\[1, 0\]'):
        both.batches_per_pass(1)
    assert take(make([3, 0], ratio=[1, 0]), 3) == take(make([3], ratio=[1]), 3)


@pytest.mark.parametrize(
    ('sizes', 'kwargs', 'message'),
    [
        ([3, 0], {}, r'sources \[1\] are empty'),
        ([3, 3], dict(ratio=[1]), 'has 1 numbers.*2 sources'),
        ([3, 3], dict(ratio=[0, 0]), 'at least one of them positive'),
        ([3, 3], dict(ratio=[2, -1]), 'must be numbers from 0 up'),
        ([3, 3], dict(ratio=[1, float('nan')]), 'must be numbers from 0 up'),
        ([3, 3, 3], dict(batch_size=2, ratio=[4, 1, 0]), 'leaves source 1 out'),
        ([3], dict(batch_size=0), r'`batch_size` must be in \[1, inf\], got 0'),
    ],
)
def test_wrong_settings_are_refused(sizes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(sizes, **kwargs)


def test_negative_skip_is_refused():
    with pytest.raises(ValueError, match='-1'):
        make([3]).skip(-1)


def test_without_shuffle_sources_are_walked_in_order():
    assert take(make([3, 4], 2, shuffle=False), 8) == [0, 3, 1, 4, 2, 5, 0, 6]


def test_batches_per_pass_counts_all_ranks():
    sampler = make([34, 242], batch_size=8, ratio=[1, 3], world=2)
    assert (sampler.batches_per_pass(0), sampler.batches_per_pass(1)) == (9, 21)


def test_length_is_that_of_the_data_set_and_epochs_change_nothing():
    sampler = make([9, 5])
    before = take(sampler, 10)
    sampler.set_epoch(3)
    assert len(sampler) == 14
    assert take(sampler, 10) == before


def test_a_data_set_that_is_not_concatenated_is_one_source():
    sampler = MultiSourceSampler(range(6), 2, [1], seed=0)
    assert sorted(take(sampler, 6)) == list(range(6))


def test_without_a_seed_one_is_drawn_for_all_ranks():
    with mock.patch.object(multi_source_sampler, 'sync_random_seed', return_value=5) as drawn:
        sampler = make([9], seed=None)
    drawn.assert_called_once()
    assert take(sampler, 9) == take(make([9], seed=5), 9)


def test_seeded_index_is_an_int_that_survives_pickling():
    index = pickle.loads(pickle.dumps(SeededIndex(3, seed=2**63)))
    assert (index, index.seed, [4, 5, 6, 7][index]) == (3, 2**63, 7)


@pytest.mark.parametrize('workers', [0, 2])
def test_seeds_reach_the_data_set_through_a_loader(workers):
    sampler = make([9, 5])
    loader = DataLoader(sampler.dataset, 4, sampler=sampler, num_workers=workers, collate_fn=list)
    batches = islice(loader, 3)
    found = [sample for batch in batches for sample in batch]
    assert found == [(int(index), index.seed) for index in take(sampler, 12)]


def test_is_built_by_name():
    defaults = dict(dataset=Sources(4, 4), seed=2)
    config = dict(type='mmdmt.MultiSourceSampler', batch_size=2, source_ratio=[1, 1])
    assert isinstance(DATA_SAMPLERS.build(config, default_args=defaults), MultiSourceSampler)
