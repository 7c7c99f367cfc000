"""Refusing to train on faulty data."""

import os.path as osp
from typing import Any, Optional, Union

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.datasets.validation import DatasetError, check_dataset, raise_on_problems
from mmdmt.registry import HOOKS

MODES = ('full', 'fast', 'off')


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Checks lists, images and masks before training and refuses to start if any is faulty.

    Finds what ``tools/misc/check_dataset.py`` finds and fails with the same message. Rank 0
    checks, every rank gets the error. Decoding everything takes about as long as reading every
    file once; for large data sets on several machines run the tool first with ``--cache``, since
    the other ranks' wait for rank 0 is limited by ``env_cfg.dist_cfg.timeout``.

    Args:
        mode (str): ``'full'`` decodes every image and mask of the training and validation sets;
            ``'fast'`` checks lists, existence and file headers only; ``'off'`` checks nothing.
            Defaults to ``'full'``.
        cache (bool | str): Remember sound files, so that a resumed run only looks whether they
            changed: in ``dataset_check.json`` of the work dir (True), or in the file named.
            Defaults to True.

    Raises:
        ValueError: If ``mode`` is none of the three.
    """

    # Before anything that uses the data, such as making pseudo-labels in the same hook point.
    priority = 'VERY_HIGH'

    def __init__(self, mode: str = 'full', cache: Union[bool, str] = True) -> None:
        if mode not in MODES:
            raise ValueError(f'DatasetCheckHook: mode={mode!r} is none of {", ".join(MODES)}')
        self.mode = mode
        self.cache = cache

    def before_train(self, runner: Runner) -> None:
        """Check the data of ``runner``.

        Raises:
            DatasetError: On every rank, with a table of all problems, if there are any.
        """
        if self.mode == 'off':
            return
        result: list[Any] = [self._check(runner) if is_main_process() else None]
        broadcast_object_list(result)
        if isinstance(result[0], Exception):
            raise result[0]
        raise_on_problems(result[0])

    def _check(self, runner: Runner) -> Any:
        """Return the problems, or the error that checking ended with: other ranks wait for it."""
        val_loop = getattr(runner, 'val_loop', None)
        try:
            problems = check_dataset(
                runner.train_dataloader.dataset,
                None if val_loop is None else val_loop.dataloader.dataset,
                full=self.mode == 'full',
                cache_file=self._cache_file(runner),
            )
        except Exception as error:
            runner.logger.exception('the data check itself failed')
            return DatasetError(f'the data check failed: {type(error).__name__}: {error}')
        runner.logger.info(f'data check ({self.mode}): {len(problems)} problems')
        return problems

    def _cache_file(self, runner: Runner) -> Optional[str]:
        if isinstance(self.cache, str):
            return self.cache
        return osp.join(runner.work_dir, 'dataset_check.json') if self.cache else None
