"""Processes that train together: what rank 0 finds out all ranks know; one error ends all ranks."""

import atexit
import datetime
import os
import pickle
import platform
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Callable, Optional

import torch
from mmengine.device import get_device
from mmengine.dist import (
    all_reduce,
    broadcast,
    broadcast_object_list,
    get_rank,
    get_world_size,
    init_dist,
    is_distributed,
    is_main_process,
)
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_LOOK_EVERY = 1.0  # seconds between two looks for the failure of another rank
_GRACE = 5.0  # seconds that a rank has to end by itself, after another one has failed
_CONNECT = datetime.timedelta(seconds=60)


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

    From here on an error that ends one rank ends all of them; see :class:`FailureWatch`.

    Raises:
        RuntimeError: A launcher other than ``pytorch`` on a machine without an accelerator.
    """
    if launcher != 'none' and not is_distributed():
        _init_process_group(launcher, env_cfg.get('dist_cfg', {}))
    if get_world_size() > 1:
        FailureWatch.start()


def _init_process_group(launcher: str, dist_cfg: dict) -> None:
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


class FailureWatch:
    """Ends all ranks within seconds, with the same message, when an error ends one of them.

    Without it the others wait in their next collective for what never comes: until the timeout of
    NCCL, or for what gloo calls a closed connection. Code that runs on one rank only, or fails on
    one rank only, may therefore just raise: no rank has to be told, no collective to be reached.

    A rank that ends with an uncaught exception (``sys.excepthook``) puts its message into a store
    that rank 0 keeps. A thread of each other rank looks there every second, prints the message
    and, unless the process ends by itself, ends it: with exit code 1, wherever it waits. An error
    that is caught ends nothing. Nothing is exchanged between the ranks while they train.
    """

    _running: Optional['FailureWatch'] = None

    @classmethod
    def start(cls) -> None:
        """Watch from now on until the process ends; all ranks call it, more than once if needed."""
        if cls._running is None:
            cls._running = cls()

    def __init__(self) -> None:
        self._rank = get_rank()
        self._others = get_world_size() - 1
        self._store = _shared_store()
        self._lock = threading.Lock()
        self._failed = False  # this rank, or another one of which this rank has heard
        self._leaving = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self._show = sys.excepthook
        sys.excepthook = self._fail
        atexit.register(self._leave)

    def _watch(self) -> None:
        """Thread: look for a failure, and end the process if it does not end by itself."""
        try:
            while not self._leaving.wait(_LOOK_EVERY):
                if self._heard():
                    if not self._leaving.wait(_GRACE):
                        _end_now()
                    return
        except RuntimeError:  # rank 0, which keeps the store, has ended
            return

    def _heard(self) -> bool:
        """Whether a rank has failed; the message of another one is printed once."""
        with self._lock:
            if self._failed or not self._store.add('failures', 0):
                return self._failed
            message = self._store.get('message').decode()
            self._failed = True
            self._store.add('informed', 1)
        print(message, file=sys.stderr, flush=True)
        return True

    def _fail(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: Optional[TracebackType],
    ) -> None:
        """In place of ``sys.excepthook``: print the traceback and tell the other ranks."""
        self._show(kind, error, trace)
        try:
            self._tell(''.join(traceback.format_exception_only(kind, error)).strip())
            self._wait_for_others()
        except RuntimeError:  # rank 0 has ended
            self._failed = True

    def _tell(self, error: str) -> None:
        """Leave the message for the other ranks, unless one of them was first."""
        with self._lock:
            if not self._failed and self._store.add('failures', 1) == 1:
                where = f'rank {self._rank} (process {os.getpid()} on {platform.node()})'
                self._store.set('message', f'{where} failed, so all ranks end: {error}')
                self._store.add('informed', 1)
                self._failed = True
        self._heard()

    def _wait_for_others(self) -> None:
        """Stay until all ranks have heard or left, for some seconds at most.

        Rank 0 keeps the store meanwhile, and torchrun, which ends the others as soon as one has
        ended, does not come before the message.
        """
        end = time.monotonic() + _GRACE
        while time.monotonic() < end:
            if self._store.add('informed', 0) > self._others:
                return
            time.sleep(0.05)

    def _leave(self) -> None:
        """At exit: after a failure nothing may wait for other ranks, such as NCCL's destructors."""
        self._leaving.set()
        try:
            if not self._heard():
                self._store.add('informed', 1)
                if self._rank == 0:
                    self._wait_for_others()
                    self._heard()
        except RuntimeError:  # rank 0 has ended
            pass
        if self._failed:
            _end_now()


def _shared_store() -> torch.distributed.TCPStore:
    """A store of its own: the one of the process group may be waiting for a rank that failed."""
    host = os.environ.get('MASTER_ADDR') or from_main(platform.node)
    kept = []

    def keep() -> int:
        kept.append(torch.distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False))
        return kept[0].port

    port = from_main(keep)
    return kept[0] if kept else torch.distributed.TCPStore(host, port, timeout=_CONNECT)


def _end_now() -> None:
    """End the process with exit code 1, without waiting for anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
