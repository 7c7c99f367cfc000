"""Checkpoint hook that a kill at any moment cannot rob of the last good checkpoint."""

import os.path as osp
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmengine.utils import apply_to

from mmdmt.distributed import share_buffers, unwrap
from mmdmt.engine.final import main_metric, numbers
from mmdmt.files import write_text_atomically
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's :class:`CheckpointHook` with a safe order of events; one argument more.

    - An old checkpoint is removed only after the new one is completely on disk (mmengine removes
      it before, so that a kill in between leaves nothing with ``max_keep_ckpts=1``).
    - A best checkpoint that is surpassed is removed only after a numbered checkpoint that knows the
      better one, or at the end: a run resumed from the one before still finds its best. One in the
      folder of another run, from which this one goes on, is left there.
    - By iterations, a new best makes no numbered checkpoint (mmengine saves one after the
      validation, also where none was due). A checkpoint is always of the state before its
      validation, which :class:`~mmdmt.engine.hooks.ValidateOnResumeHook` repeats: otherwise what a
      validation does, such as a step of ``ReduceOnPlateauLR``, would be done twice, and gradients
      that are being accumulated would be lost.
    - ``last_checkpoint`` is replaced atomically. Checkpoints themselves are written atomically by
      :meth:`mmdmt.SemiRunner.save_checkpoint`.
    - Metrics and logged scalars are stored as Python numbers and tensors, so that any
      ``torch.load(..., weights_only=True)`` reads the file.
    - A metric that is NaN or infinite is never the best. ``save_best='auto'`` goes by mIoU, or what
      a classifier has instead (mmengine: by whichever metric comes first); where there is no such
      metric, nothing is the best. All metrics of the best checkpoint are kept with its name.
    - With several processes, all validate the same network and go on from a checkpoint with what is
      on disk (:func:`~mmdmt.distributed.share_buffers`): the running statistics of ordinary batch
      norm are averaged over the ranks, those of teachers and of mmengine's ``EMAHook`` too. Between
      two validations or checkpoints each rank has statistics of its own. Otherwise an interrupted
      run would differ from one that was not, and only the images of rank 0 would count.

    Args:
        milestones (Sequence[int]): Iterations after which a checkpoint is made besides, and kept.
        *args, **kwargs: Of mmengine's hook.
    """

    def __init__(self, *args: Any, milestones: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.milestones = set(milestones)

    def before_train(self, runner: Runner) -> None:
        """Take up what a resumed run knows; the best checkpoint is that of its own folder."""
        super().before_train(runner)
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._own(self.best_ckpt_path)
            runner.message_hub.update_info('best_ckpt', self.best_ckpt_path)
        paths = getattr(self, 'best_ckpt_path_dict', {})
        paths.update({key: self._own(path) for key, path in paths.items() if path})

    def after_train(self, runner: Runner) -> None:
        """Remove what is not the best any more."""
        super().after_train(runner)
        self._remove_surpassed(runner)

    def every_n_train_iters(self, runner: Runner, n: int, start: int = 0) -> bool:
        """Whether a checkpoint is due."""
        return runner.iter + 1 in self.milestones or super().every_n_train_iters(runner, n, start)

    def before_val_epoch(self, runner: Runner) -> None:
        """Let all ranks validate the same network; ``EMAHook`` has put its average in."""
        _share_buffers(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Turn the message hub into plain values, which load without any allow-list."""
        hub = apply_to(
            checkpoint['message_hub'],
            lambda value: isinstance(value, np.generic),
            lambda value: value.item(),
        )
        scalars = {key: _plain_history(value) for key, value in hub['log_scalars'].items()}
        checkpoint['message_hub'] = dict(hub, log_scalars=scalars)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Turn the plain values back into what mmengine's message hub expects."""
        hub = checkpoint.get('message_hub')
        if isinstance(hub, dict):
            scalars = {key: _history(value) for key, value in hub['log_scalars'].items()}
            checkpoint['message_hub'] = dict(hub, log_scalars=scalars)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Write the checkpoint, point ``last_checkpoint`` to it, then remove outdated ones."""
        outdated = self._remember(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        _share_buffers(runner, averages=True)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_text_atomically(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            for old in outdated:
                path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                _remove(self.file_backend, path)
        self._remove_surpassed(runner)

    def _own(self, path: str) -> str:
        """A checkpoint where this run has it, also if the folder was moved or copied since."""
        own = self.file_backend.join_path(self.out_dir, osp.basename(path))
        return own if self.file_backend.isfile(own) else path

    def _remove_surpassed(self, runner: Runner) -> None:
        """Remove the checkpoints of this run that were the best before."""
        info = runner.message_hub.runtime_info
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        for name in info.get('surpassed', ()) if is_main_process() else ():
            path = self.file_backend.join_path(self.out_dir, name)
            if path not in kept:
                _remove(self.file_backend, path)
        runner.message_hub.update_info('surpassed', [])

    def _remember(self, runner: Runner, step: int) -> list[int]:
        """Note the checkpoint of ``step`` and return the steps that are kept no longer."""
        if self.max_keep_ckpts <= 0 or step in self.milestones:
            return []
        kept = [old for old in self.keep_ckpt_ids if old != step]
        outdated = kept[: max(0, len(kept) + 1 - self.max_keep_ckpts)]
        if step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)  # a deque: the oldest falls out
        # The outdated ones are still listed in the new file: if the process is killed before they
        # are removed, mmengine's `before_train` removes them when the run is resumed.
        runner.message_hub.update_info('keep_ckpt_ids', [*outdated, *self.keep_ckpt_ids])
        return outdated

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save a new best checkpoint before the previous best one is removed.

        A metric that is NaN or infinite is never the best; a warning names it.
        """
        if not hasattr(self, 'file_backend'):  # no training, only a validation: nothing is saved
            return
        if self.save_best == ['auto']:
            self._decide_by(main_metric(metrics), runner)
        metrics = dict(metrics)
        for key in self.save_best or ():
            if not np.isfinite(metrics.get(key, 0)):
                runner.logger.warning(f'{key} is {metrics[key]}, which is not taken for the best')
                metrics[key] = None
        info, backend, last = runner.message_hub.runtime_info, self.file_backend, self.last_ckpt
        self.file_backend = deferred = _DeferringBackend(backend)
        self.last_ckpt = None  # mmengine then saves the best alone
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend, self.last_ckpt = backend, last
        # Names alone: the folder may be moved or copied before they are removed.
        names = [*info.get('surpassed', ()), *map(osp.basename, deferred.removed)]
        runner.message_hub.update_info('surpassed', list(dict.fromkeys(names)))
        is_new = self._remember_metrics(runner, metrics)
        if is_new and self.by_epoch and last is not None:
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, runner.epoch, meta)

    def _decide_by(self, key: Optional[str], runner: Runner) -> None:
        """Settle what ``save_best='auto'`` means."""
        if key is None:
            runner.logger.warning("save_best='auto' finds no metric to go by: no best is kept")
        self.save_best = [] if key is None else [key]
        self._init_rule(['greater'], self.save_best)

    def _remember_metrics(self, runner: Runner, metrics: dict) -> bool:
        """Keep the metrics of the best checkpoints for the end of the run; whether one is new."""
        if not self.save_best:
            return False
        info = runner.message_hub.runtime_info
        keys = self.key_indicators
        names = ['best_ckpt'] if len(keys) == 1 else [f'best_ckpt_{key}' for key in keys]
        before, now, is_new = info.get('best_metrics') or {}, {}, False
        for path in filter(None, map(info.get, names)):
            name = osp.basename(path)
            new = name.endswith('_' + self.filename_tmpl.format(_progress(runner, self.by_epoch)))
            now[name] = numbers(metrics) if new else before.get(name, {})
            is_new = is_new or new
        runner.message_hub.update_info('best_metrics', now)
        runner.message_hub.update_info('best_key', keys[0])
        return is_new


class _DeferringBackend:
    """File backend that lists what should be removed instead of removing it."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removed: list[str] = []
        self.remove = self.rmtree = self.removed.append

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _progress(runner: Runner, by_epoch: bool) -> int:
    return runner.epoch if by_epoch else runner.iter


def _plain_history(history: HistoryBuffer) -> dict:
    """A history as tensors."""
    values, counts = history.data
    return dict(
        log_history=torch.from_numpy(np.asarray(values, dtype=np.float64)),
        count_history=torch.from_numpy(np.asarray(counts, dtype=np.int64)),
        max_length=history.max_length,
    )


def _history(plain: Union[dict, HistoryBuffer]) -> HistoryBuffer:
    """The history that :func:`_plain_history` took apart; others stay as they are."""
    if not isinstance(plain, dict):
        return plain
    arrays = (plain['log_history'].cpu().numpy(), plain['count_history'].cpu().numpy())
    return HistoryBuffer(*arrays, max_length=plain['max_length'])


def _remove(backend: Any, path: str) -> None:
    """Remove a checkpoint, which is a folder under deepspeed."""
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):
        backend.rmtree(path)


def _share_buffers(runner: Runner, averages: bool = False) -> None:
    """Give every rank the same buffers of the network, and of averages outside of it."""
    if get_world_size() == 1:
        return
    share_buffers(unwrap(runner.model))
    if averages:
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                share_buffers(hook.ema_model)
