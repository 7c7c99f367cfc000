"""Batch sizes of several processes."""

import copy

from mmdmt.datasets.samplers.multi_source_sampler import split_batch


def loader_of_process(loader: dict, processes: int) -> dict:
    """The training loader of each of several processes that share the batch of a config.

    Published batch sizes are those of all GPUs together. With this loader a step of any number of
    processes learns from the same images (:class:`mmdmt.MultiSourceSampler` hands them out in
    turn), so that learning rate and number of steps need not change with it.

    Args:
        loader (dict): Config of a loader whose ``batch_size`` is that of all processes. It is not
            changed.
        processes (int): Their number.

    Raises:
        ValueError: If they cannot share a batch evenly, source by source.
    """
    loader = copy.deepcopy(loader)
    total, sampler = loader['batch_size'], loader.get('sampler') or {}
    ratio = sampler.get('source_ratio')
    counts = split_batch(total, ratio) if ratio and sum(ratio) else [total]
    if any(count % processes for count in counts):
        of_sources = f' ({counts} of the sources by `source_ratio={ratio}`)' if ratio else ''
        raise ValueError(
            f'`train_dataloader.batch_size={total}`{of_sources} is that of all processes together '
            f'(`batch_size_is_total`), but {processes} processes cannot share it evenly: set a '
            f'`batch_size` with multiples of {processes} of each source, or start another number '
            'of processes'
        )
    loader['batch_size'] = total // processes
    if ratio:
        sampler.update(
            batch_size=loader['batch_size'], source_ratio=[count // processes for count in counts]
        )
    return loader
