"""Moves the teachers of an on-line method after each optimizer step."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.distributed import unwrap
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class TeacherUpdateHook(Hook):
    """Calls ``model.update_teachers()`` after each optimizer step.

    It runs before the checkpoint hook, so that a checkpoint holds teachers and students of the
    same step. With gradient accumulation the teachers move only when the optimizer has stepped.
    """

    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Check once that the model has teachers to update."""
        model = unwrap(runner.model)
        if not hasattr(model, 'update_teachers'):
            raise TypeError(
                f'TeacherUpdateHook needs a model with `update_teachers()`, such as '
                f'mmdmt.MeanTeacher, got {type(model).__name__}: remove the hook from '
                '`custom_hooks` or change `model.type`'
            )
        model.teacher_hook_attached = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Update the teachers if the optimizer has stepped."""
        accumulate = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        last = batch_idx + 1 == runner.max_iters
        if (batch_idx + 1) % accumulate == 0 or last:
            unwrap(runner.model).update_teachers()
