"""Processes that train together: what rank 0 finds out all ranks know, and the model inside DDP."""

import datetime
import pickle
from typing import Any, Callable

import torch
from mmengine.device import get_device
from mmengine.dist import (
    all_reduce,
    broadcast,
    broadcast_object_list,
    init_dist,
    is_distributed,
    is_main_process,
)
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def from_main(function: Callable[[], Any]) -> Any:
    """Result of a function that only the first rank runs; all ranks return it.

    For files that every rank would otherwise read or write. The result must be picklable. Where
    there is no process group, every process is its own first rank.

    Raises:
        Exception: What ``function`` raised, on every rank: none waits for the others in vain.
    """
    sent = [None, None]
    failure = None
    if is_main_process():
        try:
            sent[0] = function()
        except Exception as error:
            failure = error
            sent[1] = error if _can_be_sent(error) else RuntimeError(repr(error))
    broadcast_object_list(sent)
    if failure is not None:
        raise failure
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def share_buffers(model: nn.Module) -> None:
    """Give all ranks the same buffers: averaged running statistics, all others those of rank 0.

    Running means and variances of batch and instance norm are averaged over the ranks, as by
    mmengine's ``SyncBuffersHook``, so that the images of all ranks count. An average of counters
    or of memory banks would mean nothing. All ranks must call this together.
    """
    layers = [module for module in model.modules() if isinstance(module, _NormBase)]
    pairs = [(layer.running_mean, layer.running_var) for layer in layers]
    statistics = [value for pair in pairs for value in pair if value is not None]
    if statistics:
        # In double precision ranks that agree already keep their numbers to the last bit.
        means = torch.cat([value.double().flatten() for value in statistics])
        all_reduce(means, 'mean')
        for value, mean in zip(statistics, means.split([each.numel() for each in statistics])):
            value.copy_(mean.view_as(value))
    averaged = {id(value) for value in statistics}
    for buffer in model.buffers():
        if id(buffer) not in averaged:
            broadcast(buffer, src=0)


def join_process_group(launcher: str, env_cfg: dict) -> None:
    """Join the process group that ``launcher`` and ``env_cfg`` ask for, unless that was done.

    Raises:
        RuntimeError: A launcher other than ``pytorch`` on a machine without an accelerator.
    """
    if launcher == 'none' or is_distributed():
        return
    dist_cfg = env_cfg.get('dist_cfg', {})
    if get_device() != 'cpu':
        init_dist(launcher, **dist_cfg)
        return
    if launcher != 'pytorch':
        raise RuntimeError(
            f"launcher='{launcher}' needs a GPU on every process, and none is visible here. Use "
            "launcher='pytorch' (tools/dist_train.sh, torchrun) on CPUs."
        )
    timeout = datetime.timedelta(seconds=dist_cfg.get('timeout', 1800))
    torch.distributed.init_process_group('gloo', timeout=timeout)
