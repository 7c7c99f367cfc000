"""Endless sampler that draws a fixed number of items from each source for every batch."""

from collections.abc import Iterator, Sequence, Sized
from typing import Optional

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmdmt.datasets.samplers.seeded_index import SeededIndex
from mmdmt.registry import DATA_SAMPLERS

# First word of each seed sequence, so that permutations and draws never share random numbers.
_PERMUTATION_STREAM, _DRAW_STREAM = 0, 1


@DATA_SAMPLERS.register_module()
class MultiSourceSampler(Sampler):
    """Draws every batch from several sources in a fixed ratio.

    Each source is drawn without replacement: one pass over a source is a permutation of it, and
    the permutation depends only on the seed, the source and the number of the pass. All ranks
    walk through the same permutation in turn, rank ``r`` of ``w`` taking positions ``r``,
    ``r + w``, ... of the stream. Hence every index follows from its place in the stream alone;
    there is no state to save, and :meth:`skip` costs nothing.

    A batch holds the items of source 0 first, then those of source 1, and so on. The items per
    batch are the shares of ``source_ratio``, rounded down, the rest going to the largest
    remainders.

    Args:
        dataset (Sized): A concatenated data set with ``cumulative_sizes``, such as
            :class:`~mmdmt.datasets.SemiDataset`. Any sized data set if there is one source.
        batch_size (int): Items per batch on this rank. Must be the batch size of the loader.
        source_ratio (Sequence[float]): Share of each source in a batch, one positive number a
            source. ``[1]`` draws from a single source.
        shuffle (bool): Whether to permute each pass. Defaults to True.
        seed (int, optional): Seed, the same on all ranks. By default drawn once for all ranks.

    Raises:
        ValueError: If a source is empty, the number of ratios is not the number of sources, or
            the batch is too small to hold every source.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        source_ratio: Sequence[float],
        shuffle: bool = True,
        seed: Optional[int] = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.source_ratio = list(source_ratio)
        self.shuffle = shuffle
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else int(seed)
        ends = list(getattr(dataset, 'cumulative_sizes', [len(dataset)]))
        self._starts = [0, *ends[:-1]]
        self.source_sizes = [end - start for start, end in zip(self._starts, ends)]
        self._check_sources()
        self.items_per_batch = self._split_batch()
        # For each place in a batch: its source, and its rank among the items of that source.
        self._places = [
            (source, item)
            for source, count in enumerate(self.items_per_batch)
            for item in range(count)
        ]
        self._passes = [(-1, None)] * len(self.source_sizes)
        self._skipped = 0

    def _check_sources(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f'`batch_size` must be at least 1, got {self.batch_size}')
        if len(self.source_ratio) != len(self.source_sizes):
            raise ValueError(
                f'`source_ratio` {self.source_ratio} has {len(self.source_ratio)} numbers, but '
                f'the data set has {len(self.source_sizes)} sources; give one number a source'
            )
        if any(not 0 < share < float('inf') for share in self.source_ratio):
            raise ValueError(
                f'`source_ratio` must be positive, got {self.source_ratio}; leave a source that '
                'is not to be drawn out of the data set'
            )
        empty = [source for source, size in enumerate(self.source_sizes) if size == 0]
        if empty:
            raise ValueError(f'sources {empty} are empty (sizes {self.source_sizes})')

    def _split_batch(self) -> list[int]:
        """Items of each source in a batch, by the method of the largest remainder."""
        total = sum(self.source_ratio)
        shares = [self.batch_size * share / total for share in self.source_ratio]
        counts = [int(share) for share in shares]
        remainders = [share - count for share, count in zip(shares, counts)]
        by_remainder = sorted(range(len(shares)), key=lambda source: -remainders[source])
        for source in by_remainder[: self.batch_size - sum(counts)]:
            counts[source] += 1
        if 0 in counts:
            raise ValueError(
                f'`batch_size={self.batch_size}` with `source_ratio={self.source_ratio}` gives '
                f'{counts} items per source and leaves source {counts.index(0)} out of every '
                'batch; use a larger `batch_size` or a more even `source_ratio`'
            )
        return counts

    def __iter__(self) -> Iterator[SeededIndex]:
        draw = self._skipped
        while True:
            yield self._draw(draw)
            draw += 1

    def _draw(self, draw: int) -> SeededIndex:
        """Index number ``draw`` of this rank, counted from the start of the stream."""
        batch, place = divmod(draw, self.batch_size)
        source, item = self._places[place]
        on_this_rank = batch * self.items_per_batch[source] + item
        position = on_this_rank * self.world_size + self.rank
        number, offset = divmod(position, self.source_sizes[source])
        index = self._starts[source] + int(self._permutation(source, number)[offset])
        return SeededIndex(index, self._draw_seed(draw))

    def _permutation(self, source: int, number: int) -> Sequence[int]:
        """Order of pass ``number`` over ``source``; only the latest one is kept."""
        size = self.source_sizes[source]
        if not self.shuffle:
            return range(size)
        kept, order = self._passes[source]
        if kept != number:
            sequence = np.random.SeedSequence([self.seed, _PERMUTATION_STREAM, source, number])
            # RandomState, because NumPy has frozen what it draws: a run that goes on under
            # another version of NumPy sees the same order.
            order = np.random.RandomState(sequence.generate_state(8)).permutation(size)
            self._passes[source] = (number, order)
        return order

    def _draw_seed(self, draw: int) -> int:
        sequence = np.random.SeedSequence([self.seed, _DRAW_STREAM, self.rank, draw])
        return int(sequence.generate_state(1, np.uint64)[0])

    def skip(self, num_samples: int) -> None:
        """Advance this rank's stream, so that the next ``iter()`` starts further on.

        mmengine's training loop calls this on resuming. Iterators that exist already do not move.

        Args:
            num_samples (int): Number of draws to leave out, of all sources together.

        Raises:
            ValueError: If it is negative.
        """
        if num_samples < 0:
            raise ValueError(f'`num_samples` must not be negative, got {num_samples}')
        self._skipped += num_samples

    def batches_per_pass(self, source: int = 0) -> int:
        """Batches after which every item of ``source`` has been drawn, by all ranks together."""
        per_batch = self.items_per_batch[source] * self.world_size
        return -(-self.source_sizes[source] // per_batch)

    def __len__(self) -> int:
        """Number of items in the data set; the stream itself is endless."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs. Part of mmengine's protocol of samplers."""
