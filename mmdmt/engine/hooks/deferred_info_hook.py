"""Runtime information without waiting for the device in every step."""

from typing import Any, Dict, List, Optional

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner
from torch import Tensor

from mmdmt.registry import HOOKS

MAX_PENDING = 200


@HOOKS.register_module()
class DeferredInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook``, which reads losses from the device only when they are logged.

    mmengine's puts every loss and statistic of each step into the message hub as a number, for
    which the host waits until the GPU has finished the step; it queues the next one only then.
    This hook keeps them as tensors and hands all of them over together, in their order: where a
    ``LoggerHook`` writes, before validation, into a checkpoint, at the end, and every
    ``MAX_PENDING`` iterations. Logs, smoothing windows and checkpoints have the same values. A hook
    that reads ``message_hub.log_scalars`` in between sees those of the last time; ``outputs`` of
    its ``after_train_iter`` are those of the step.
    """

    def __init__(self) -> None:
        self._pending: List[Dict[str, Any]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Keep the values of a step; hand over if they are about to be logged."""
        self._pending.append(
            {k: v.detach() if isinstance(v, Tensor) else v for k, v in (outputs or {}).items()}
        )
        if len(self._pending) >= MAX_PENDING or _is_logged(runner, batch_idx):
            self.hand_over(runner)

    def hand_over(self, runner: Runner) -> None:
        """Put all values that are kept into the message hub; the host waits once."""
        pending, self._pending = self._pending, []
        items = [item for outputs in pending for item in outputs.items()]
        tensors = [value.float().reshape(()) for _, value in items if isinstance(value, Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        for key, value in items:
            value = next(numbers) if isinstance(value, Tensor) else value
            runner.message_hub.update_scalar(f'train/{key}', value)

    def before_val(self, runner: Runner) -> None:
        """Hand over before anything is validated."""
        self.hand_over(runner)
        super().before_val(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store a history that is complete; mmengine has copied it before this call."""
        self.hand_over(runner)
        histories = runner.message_hub.state_dict()['log_scalars']
        checkpoint['message_hub']['log_scalars'] = histories

    def after_train(self, runner: Runner) -> None:
        """Hand over what is left."""
        self.hand_over(runner)
        super().after_train(runner)


def _is_logged(runner: Runner, batch_idx: int) -> bool:
    """Whether a ``LoggerHook`` writes after this iteration."""
    return any(
        hook.every_n_inner_iters(batch_idx, hook.interval)
        or hook.end_of_epoch(runner.train_dataloader, batch_idx)
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
    )
