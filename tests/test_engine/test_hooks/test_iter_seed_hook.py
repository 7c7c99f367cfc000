import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmdmt.engine.hooks import IterSeedHook
from mmdmt.engine.hooks.iter_seed_hook import seed_everything_at


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def draws_at(*place):
    seed_everything_at(*place)
    return draw()


def test_states_follow_from_seed_rank_and_iteration_alone():
    first = draws_at(3, 1, 40)
    for _ in range(5):
        draw()
    assert draws_at(3, 1, 40) == first


@pytest.mark.parametrize('other', [(4, 1, 40), (3, 0, 40), (3, 1, 41), (1, 3, 40), (3, 40, 1)])
def test_each_of_them_counts_for_each_generator(other):
    assert not set(draws_at(3, 1, 40)) & set(draws_at(*other))


def test_hook_takes_the_iteration_of_the_runner():
    runner = SimpleNamespace(seed=3, rank=1, iter=40)
    IterSeedHook().before_train_iter(runner, batch_idx=7)
    assert draw() == draws_at(3, 1, 40)


def test_hook_runs_before_hooks_that_may_draw():
    assert IterSeedHook.priority == 'VERY_HIGH'
