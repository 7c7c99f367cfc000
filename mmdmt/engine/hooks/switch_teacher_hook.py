"""Changes the teacher that is on duty."""

from typing import Optional, Union

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.distributed import unwrap
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class SwitchTeacherHook(Hook):
    """Calls ``model.switch_teacher()`` at the end of every shift.

    A shift is a pass over the labeled images, as published with Dual Teacher, or a number of
    iterations. Which teacher is on duty is part of the model and of its checkpoints. A shift
    begins before its first iteration, so that a run resumed between two shifts switches exactly
    once.

    Args:
        every (int | str): Iterations of a shift, or 'epoch' (default): as many as it takes to draw
            every labeled image once, by all processes together.
        source (int): Number of the labeled data set among those of the ``SemiDataset``, the first
            by default. It is read only with ``every='epoch'``.

    Raises:
        ValueError: If ``every`` is neither 'epoch' nor a positive integer.
    """

    # After IterSeedHook, before hooks that look at the model.
    priority = 'HIGH'

    def __init__(self, every: Union[int, str] = 'epoch', source: int = 0) -> None:
        is_count = isinstance(every, int) and not isinstance(every, bool) and every > 0
        if every != 'epoch' and not is_count:
            raise ValueError(
                "SwitchTeacherHook: `every` must be 'epoch' or a positive number of iterations, "
                f'got {every!r}'
            )
        self.every = every
        self.source = source
        self.shift_iters: Optional[int] = None

    def before_train(self, runner: Runner) -> None:
        """Check the model and find out how long a shift is."""
        model = unwrap(runner.model)
        if not hasattr(model, 'switch_teacher'):
            raise TypeError(
                'SwitchTeacherHook needs a model with `switch_teacher()`, such as '
                f'mmdmt.DualTeacher, got {type(model).__name__}: remove the hook from '
                '`custom_hooks` or change `model.type`'
            )
        self.shift_iters = self._labeled_epoch(runner) if self.every == 'epoch' else self.every
        model.switch_hook_attached = True
        runner.logger.info(f'Another teacher goes on duty every {self.shift_iters} iterations.')

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Switch if a shift begins."""
        if runner.iter > 0 and runner.iter % self.shift_iters == 0:
            unwrap(runner.model).switch_teacher()

    def _labeled_epoch(self, runner: Runner) -> int:
        """Iterations in which every labeled image is drawn once."""
        sampler = getattr(runner.train_dataloader, 'sampler', None)
        if not hasattr(sampler, 'batches_per_pass'):
            raise TypeError(
                "SwitchTeacherHook(every='epoch') asks `train_dataloader.sampler` how long a pass "
                f'over the labeled images is, which {type(sampler).__name__} cannot tell: use '
                'mmdmt.MultiSourceSampler, or give `every` as a number of iterations'
            )
        return sampler.batches_per_pass(self.source)
