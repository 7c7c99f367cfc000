"""One process among others: what rank 0 finds out all ranks know, and the model inside DDP."""

import pickle
from typing import Any, Callable

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper
from torch import nn


def from_main(function: Callable[[], Any]) -> Any:
    """Result of a function that only the first rank runs; all ranks return it.

    For files that every rank would otherwise read or write. Where there is no process group,
    every process is its own first rank.

    Args:
        function (Callable): Takes nothing and returns something that can be pickled.

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


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
