"""Makes up for the validation that a kill prevented."""

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from mmdmt.registry import HOOKS


@HOOKS.register_module()
class ValidateOnResumeHook(Hook):
    """Validates a resumed run at once if its checkpoint was due for validation.

    A checkpoint is saved before the validation of the same iteration. A run resumed from it would
    go on training without ever validating it, so its metrics, the best checkpoint and whatever is
    chosen by them could differ from those of a run that was never stopped: also where the
    validation had been finished, since the checkpoint does not know its result.

    :class:`~mmdmt.engine.runners.SemiRunner` registers it by itself.
    """

    # Validation finds all other hooks ready.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate if the loop would have validated after the iteration of the checkpoint."""
        if runner.val_loop is not None and self._is_due(runner.train_loop):
            runner.logger.info(f'Resumed at iteration {runner.iter}, which is validated first.')
            runner.val_loop.run()

    @staticmethod
    def _is_due(loop: BaseLoop) -> bool:
        if not isinstance(loop, IterBasedTrainLoop) or not 0 < loop.iter <= loop.max_iters:
            return False
        regular = loop.iter % loop.val_interval == 0
        return loop.iter >= loop.val_begin and (regular or loop.iter == loop.max_iters)
