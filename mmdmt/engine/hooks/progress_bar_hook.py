"""A progress bar in the terminal."""

import os.path as osp
from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm

from mmdmt.registry import HOOKS


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Shows how far training is, for runs whose ``log_level`` hides the lines of the log.

    Args:
        title (str, optional): Text before the bar. Defaults to the name of the work dir.
        interval (int): The loss is read every n-th iteration, because reading it makes the
            program wait for a GPU. Defaults to 20.
        position (int, optional): Line of the bar, where several processes share a terminal.
    """

    # After the hooks that prepare the training: time spent on labeling is no iteration.
    priority = 'VERY_LOW'

    def __init__(
        self, title: Optional[str] = None, interval: int = 20, position: Optional[int] = None
    ) -> None:
        self.title = title
        self.interval = interval
        self.position = position
        self._bar: Optional[tqdm] = None

    def before_train(self, runner: Runner) -> None:
        """Open the bar, at the iteration where a resumed run goes on."""
        self._bar = tqdm(
            total=runner.max_iters,
            initial=runner.iter,
            desc=self.title or osp.basename(osp.normpath(runner.work_dir)),
            unit='it',
            mininterval=1.0,
            position=self.position,
            disable=not is_main_process(),
        )

    def after_train_iter(self, runner: Runner, batch_idx: int, outputs: dict, **_: Any) -> None:
        """Move on, and show the loss now and then."""
        if outputs and self.every_n_train_iters(runner, self.interval):
            self._bar.set_postfix(loss=f'{float(outputs["loss"]):.3f}', refresh=False)
        self._bar.update()

    def after_train(self, runner: Runner) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()
