"""What the models of online methods need from a run."""

from typing import Any, Dict, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.distributed import unwrap
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class MethodHook(Hook):
    """Tells the model of an online method how long the run is, and when the optimizer has stepped.

    It has a key of its own in ``default_hooks`` of ``configs/_base_/default_runtime.py``, so that a
    config that sets ``custom_hooks`` does not lose it. Other models are left alone.

    It runs before the checkpoint hook, so that a checkpoint holds teachers and students of the
    same step. With gradient accumulation a step is one of the optimizer.
    """

    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Give the model the length of the run and of a pass over each source."""
        model = unwrap(runner.model)
        if not hasattr(model, 'start_run'):
            return
        if runner.iter == 0:
            model.reset_step()
        accumulate = _accumulative_counts(runner)
        sampler = getattr(runner.train_dataloader, 'sampler', None)
        sources = getattr(sampler, 'source_sizes', [])
        drawn = getattr(sampler, 'items_per_batch', [])
        if drawn and not all(drawn[:2] if len(drawn) > 1 else [0]):
            raise ValueError(
                f'{type(model).__name__} learns from labeled and unlabeled images, but batches '
                f'have {drawn} of the sources: set `source_ratio`, such as [1, 1]'
            )
        model.start_run(
            -(-runner.max_iters // accumulate),
            [
                -(-sampler.batches_per_pass(index) // accumulate) if drawn[index] else 0
                for index in range(len(sources))
            ],
        )

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Let the model follow if the optimizer has stepped."""
        model = unwrap(runner.model)
        last = batch_idx + 1 == runner.max_iters
        stepped = (batch_idx + 1) % _accumulative_counts(runner) == 0
        if hasattr(model, 'after_step') and (stepped or last):
            model.after_step()

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, Any]] = None) -> None:
        """Give a model that asks for it the metrics of a validation during training."""
        model = unwrap(runner.model)
        if hasattr(model, 'after_validation') and getattr(model, 'max_iters', None):
            model.after_validation(metrics or {})


def _accumulative_counts(runner: Runner) -> int:
    """Iterations over which the optimizer wrapper gathers gradients."""
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)
