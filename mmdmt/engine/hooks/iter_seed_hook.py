"""Random states as a function of the iteration."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.registry import HOOKS


def seed_everything_at(seed: int, rank: int, iteration: int) -> None:
    """Seed Python, NumPy and torch (every device) for one iteration, from 0, of one process."""
    # SeedSequence is NumPy's documented, version-stable hash of several integers.
    state = np.random.SeedSequence((seed, rank, iteration)).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Reseed all random generators before each training iteration.

    The states depend on (seed of the run, rank, iteration) and on nothing else: not on validation
    passes, not on how often a run was interrupted. So a resumed run draws the same dropout masks,
    augmentations and mixes as one that was never stopped, on every rank, without storing states in
    the checkpoint (mmengine's checkpoints come from rank 0 alone).

    Samples are made ahead of time by loader workers and are seeded per drawn sample by
    :class:`mmdmt.SemiDataset`.
    """

    # Before any hook that might draw.
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Seed for the iteration that begins."""
        seed_everything_at(runner.seed, runner.rank, runner.iter)
