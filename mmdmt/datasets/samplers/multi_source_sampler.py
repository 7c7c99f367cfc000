"""Endless sampler that draws a fixed number of items from each source for every batch."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, Optional

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmdmt.checks import check_range
from mmdmt.datasets.samplers.seeded_index import SeededIndex
from mmdmt.registry import DATA_SAMPLERS

# First word of each seed sequence, so that permutations and draws never share random numbers.
_PERMUTATION_STREAM, _DRAW_STREAM = 0, 1


def split_batch(batch_size: int, source_ratio: Sequence[float]) -> list[int]:
    """Items of each source in a batch, by the method of the largest remainder.

    Raises:
        ValueError: If the ratios are not numbers from 0 up, or leave a source with a positive one
            out of the batch.
    """
    check_range('batch_size', batch_size, 1)
    is_list = isinstance(source_ratio, (list, tuple))
    if not is_list or not all(map(_is_share, source_ratio)) or not any(source_ratio):
        raise ValueError(
            '`source_ratio` must be numbers from 0 up, at least one of them positive, one for each '
            f'source, got {source_ratio!r}; 0 stands for a source that is not drawn'
        )
    total = sum(source_ratio)
    shares = [batch_size * share / total for share in source_ratio]
    counts = [int(share) for share in shares]
    drawn = [source for source, share in enumerate(shares) if share]
    by_remainder = sorted(drawn, key=lambda source: counts[source] - shares[source])
    for source in by_remainder[: batch_size - sum(counts)]:
        counts[source] += 1
    left_out = [source for source in drawn if not counts[source]]
    if left_out:
        raise ValueError(
            f'`batch_size={batch_size}` with `source_ratio={list(source_ratio)}` gives '
            f'{counts} items per source and leaves source {left_out[0]} out of every '
            'batch; use a larger `batch_size`, a more even `source_ratio`, or the ratio 0'
        )
    return counts


def _is_share(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < float('inf')


@DATA_SAMPLERS.register_module()
class MultiSourceSampler(Sampler):
    """Draws every batch from several sources in a fixed ratio.

    Each source is drawn without replacement: one pass over a source is a permutation of it, and
    the permutation depends only on the seed, the source and the number of the pass. All ranks
    walk through the same permutation in turn, rank ``r`` of ``w`` taking positions ``r``,
    ``r + w``, ... of the stream. Hence every index follows from its place in the stream alone;
    there is no state to save, and :meth:`skip` costs nothing.

    Every batch is ordered by source: all items of source 0 (labeled) come first, then those of
    source 1 (unlabeled), and so on. ``SemiDataPreprocessor`` relies on this order. The items per
    batch are the shares of ``source_ratio``, rounded down, the rest going to the largest
    remainders.

    Args:
        dataset (Sized): A concatenated dataset with ``cumulative_sizes``, such as
            :class:`~mmdmt.datasets.SemiDataset`. Any sized dataset if there is one source.
        batch_size (int): Items per batch on this rank. Must be the batch size of the loader.
        source_ratio (Sequence[float]): Share of each source in a batch, one number a source, at
            least one of them positive. A source with the ratio 0 is not drawn: ``[1, 0]`` trains
            on labeled images alone.
        shuffle (bool): Whether to permute each pass. Defaults to True.
        seed (int, optional): Seed, the same on all ranks. By default drawn once for all ranks.

    Raises:
        ValueError: If a source to draw from is empty, the ratios are not one number from 0 up for
            each source, or the batch is too small to hold every source with a positive ratio.
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
        self.items_per_batch = split_batch(batch_size, source_ratio)
        self.batch_size = batch_size
        self.source_ratio = list(source_ratio)
        self.shuffle = shuffle
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else int(seed)
        ends = list(getattr(dataset, 'cumulative_sizes', [len(dataset)]))
        self._starts = [0, *ends[:-1]]
        self.source_sizes = [end - start for start, end in zip(self._starts, ends)]
        self._check_sources()
        # For each place in a batch: its source, and its rank among the items of that source.
        counts = enumerate(self.items_per_batch)
        self._places = [(source, item) for source, count in counts for item in range(count)]
        self._passes = [(-1, None)] * len(self.source_sizes)
        self._skipped = 0

    def _check_sources(self) -> None:
        if len(self.source_ratio) != len(self.source_sizes):
            raise ValueError(
                f'`source_ratio` {self.source_ratio} has {len(self.source_ratio)} numbers, but '
                f'the dataset has {len(self.source_sizes)} sources; give one number a source'
            )
        drawn_from = zip(self.source_sizes, self.source_ratio)
        empty = [source for source, (size, share) in enumerate(drawn_from) if share and not size]
        if empty:
            raise ValueError(f'sources {empty} are empty (sizes {self.source_sizes})')

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
        """Let the next ``iter()`` leave out so many draws, of all sources together.

        mmengine's training loop calls this on resuming. Iterators that exist already do not move.

        Raises:
            ValueError: If the number is negative.
        """
        check_range('num_samples', num_samples, 0)
        self._skipped += num_samples

    def batches_per_pass(self, source: int = 0) -> int:
        """Batches after which every item of ``source`` has been drawn, by all ranks together.

        Raises:
            ValueError: If the source has the ratio 0.
        """
        if not self.items_per_batch[source]:
            raise ValueError(
                f'source {source} is not drawn (`source_ratio={self.source_ratio}`) and has no pass'
            )
        per_batch = self.items_per_batch[source] * self.world_size
        return -(-self.source_sizes[source] // per_batch)

    def __len__(self) -> int:
        """Number of items in the dataset, of all sources; the stream itself is endless."""
        return len(self.dataset)

    def set_epoch(self, _epoch: int) -> None:
        """Do nothing: the stream has no epochs. Part of mmengine's protocol of samplers."""
